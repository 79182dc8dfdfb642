"""The effect of a plan in figures, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardctl.cli.terminal import out, print_table, say

if TYPE_CHECKING:
    from shardctl.rebalance.planning.plan import Plan
    from shardctl.rebalance.planning.rates import RowsToCopy
    from shardctl.rebalance.planning.request import Request


def of_plan(plan: Plan, rows: RowsToCopy | None, why_more: str) -> dict[str, Any]:
    """`why_more`: why more slots move than the minimum, where they do."""
    from shardctl.fleet import topology
    from shardctl.fleet.filters import MAX_FILTER_BYTES
    from shardctl.rebalance.planning.rates import expected_seconds, longest_pause_seconds

    old = {shard.name: shard for shard in plan.before.shards}
    staying = sum(len(s.slots & old[s.name].slots) for s in plan.changed if s.name in old)
    return {
        "fleet": plan.before.fleet,
        "moves": [
            {"from": m.source, "to": m.destination, "slots": str(m.slots), "slot_count": len(m.slots)}
            for m in plan.moves
        ],
        "slots": 1 << plan.before.routing.slot_bits,
        "moved": plan.moved,
        "minimum": plan.minimum,
        "why_more": why_more or None,
        "filter_limit_bytes": MAX_FILTER_BYTES,
        "shards": [
            {"name": s.shard, "share_before": s.before, "share_after": s.after, "share_wanted": s.wanted}
            for s in plan.shares
        ],
        "changed": [
            {
                "name": shard.name,
                "generation": shard.generation,
                "slots": str(shard.slots),
                "slot_count": len(shard.slots),
                "subscriptions": [sub.id for sub in topology.subscriptions(plan.after, shard)],
                "filter_bytes": max(
                    (len(sub.filter.encode()) for sub in topology.subscriptions(plan.after, shard)), default=0
                ),
                "takes_malformed_slots": shard.name not in plan.inexact,
            }
            for shard in plan.changed
        ],
        "hot_slots": list(plan.hot_slots),
        "rows": rows and rows.total,
        "rows_compared": rows and rows.compared,
        "expected_seconds": round(expected_seconds(plan.moved, staying, rows), 1),
        "longest_pause_seconds": rows and round(longest_pause_seconds(rows), 1),
        "copied_in_pause": list(rows.in_pause) if rows else [],
    }


def show(report: dict[str, Any]) -> None:
    moves = [(m["from"], m["to"], m["slots"], f"{m['slot_count']:,}") for m in report["moves"]]
    print_table(("from", "to", "slots", "count"), moves, right=("count",))
    out()
    changed = {shard["name"]: shard for shard in report["changed"]}
    rows = []
    for share in report["shards"]:
        changed_shard = changed.get(share["name"])
        if changed_shard or len(report["shards"]) <= len(changed) + 20:  # of a large fleet, only the shards that change
            rows.append(
                (
                    share["name"],
                    *(_percent(share[name]) for name in ("share_before", "share_after", "share_wanted")),
                    f"{changed_shard['filter_bytes']} of {report['filter_limit_bytes']}"
                    if changed_shard
                    else "unchanged",
                    ", ".join(changed_shard["subscriptions"][:3])
                    + (", …" if len(changed_shard["subscriptions"]) > 3 else "")
                    if changed_shard
                    else "",
                )
            )
    headers = ("shard", "before", "after", "wanted", "filter bytes", "new subscriptions")
    print_table(headers, rows, right=("before", "after", "wanted", "filter bytes"))
    out()
    out(f"{report['moved']:,} of {report['slots']:,} slots move; no plan moves fewer than {report['minimum']:,}.")
    if report["why_more"]:
        out(f"More move because {report['why_more']}.")
    counted = "rows not counted" if report["rows"] is None else f"{report['rows']:,} rows to copy"
    if report["rows_compared"]:
        counted += f", {report['rows_compared']:,} that were left behind to compare"
    out(f"Expected time: about {_time(report['expected_seconds'])} ({counted}).")
    if report["longest_pause_seconds"] is not None:
        out(f"Longest pause of a slot's writes: about {_pause(report['longest_pause_seconds'])}.")
    for reason in report["copied_in_pause"]:
        out(f"Slots are copied inside their pauses: {reason}")


def _pause(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:,.0f} min"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _time(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:,.0f} min"


def talk(report: dict[str, Any], request: Request) -> None:
    lacking = [shard["name"] for shard in report["changed"] if not shard["takes_malformed_slots"]]
    if lacking:
        say(
            f"note: the filters of {', '.join(lacking[:10])}{', …' if len(lacking) > 10 else ''} have no room for malformed "
            "slots; `shardctl validate` on the next file lists which messages may be lost unseen."
        )
    if report["hot_slots"]:
        slots = ", ".join(map(str, report["hot_slots"][:10]))
        say(f"note: slots {slots} alone receive more writes than a shard's share, and a slot can't be split.")
    if request.slots is not None:
        say("note: the other slots stay and may go later, until `finish`. `go` runs it at its end; --hold delays that.")
    if request.back or request.forward:
        say("note: slots that hadn't left yet only change generation; the moves above are the most there can be.")
        say(
            "note: of slots that `shardctl rebalance status` lists for the way back, only what has changed since is copied."
        )

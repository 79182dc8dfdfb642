"""`shardctl validate`: is this file a fleet, and what will it cost."""

from __future__ import annotations

from typing import Any

from shardctl.cli.terminal import (
    DEFAULT_FILE,
    FileOption,
    JsonOption,
    RateOption,
    out,
    print_json,
    print_table,
    say,
    size_text,
)
from shardctl.errors import EXIT_DONE

EXAMPLE_RATE = 1_000.0  # writes a second


def validate(file: FileOption = DEFAULT_FILE, rate: RateOption = EXAMPLE_RATE, as_json: JsonOption = False) -> int:
    """Check the file, prove that every message goes to exactly one shard, and give advice."""
    from shardctl import lockfile
    from shardctl.fleet.advice import advice, warnings
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    report = _report(fleet, rate)
    report["warnings"], report["advice"] = list(warnings(fleet)), list(advice(fleet))
    for sentence in report["warnings"]:
        say(f"WARNING: {sentence}")
    if as_json:
        print_json(report)
        return EXIT_DONE
    rows = [
        (
            shard["name"],
            shard["slots"],
            f"{shard['slot_count']:,}",
            f"{shard['share_percent']:.1f}%",
            shard["types"],
            str(len(shard["subscriptions"])),
            f"{max(sub['filter_bytes'] for sub in shard['subscriptions'])} of {report['filter_limit_bytes']}",
            f"{shard['inbox_rows']:,}",
            size_text(shard["inbox_bytes"]),
        )
        for shard in report["shards"]
    ]
    numbers = ("subscriptions", "filter bytes", "inbox rows", "inbox")
    print_table(("shard", "slots", "count", "share", "types", *numbers), rows, right=("count", "share", *numbers))
    out()
    out(_proof_line(report))
    out(
        f"Delivery: each message goes to {report['delivery_factor']:g} subscriptions of its topic, "
        f"about ${report['delivery_usd_per_tib']:,.0f} for each TiB published."
    )
    out(_inbox_line(report))
    for sentence in report["advice"]:
        say(f"advice: {sentence}")
    say(f"{file}: valid")
    return EXIT_DONE


def _report(fleet: Any, rate: float) -> dict[str, Any]:
    from shardctl import capacity
    from shardctl.fleet import coverage, topology
    from shardctl.fleet.filters import MAX_FILTER_BYTES

    proof, _ = coverage.prove(fleet)
    factor = topology.delivery_factor(fleet)
    rows = {s.name: capacity.inbox_rows(fleet, s, capacity.even_rate(fleet, s, rate)) for s in fleet.shards}
    return {
        "fleet": fleet.fleet,
        "slots": proof.slots,
        "types": list(proof.types),
        "pairs_proved": proof.pairs,
        "types_to_strays": list(proof.unrouted),
        "filter_limit_bytes": MAX_FILTER_BYTES,
        "topics": [topic.id for topic in topology.topics(fleet)],
        "delivery_factor": factor,
        "inbox_writes_per_second": rate,
        "delivery_usd_per_tib": factor * topology.USD_PER_DELIVERED_TIB,
        "shards": [
            {
                "name": shard.name,
                "generation": shard.generation,
                "slots": str(shard.slots),
                "slot_count": len(shard.slots),
                "share_percent": 100 * len(shard.slots) / proof.slots,
                "types": _types_text(shard),
                "inbox_rows": rows[shard.name],
                "inbox_bytes": rows[shard.name] * capacity.INBOX_BYTES_PER_WRITE,
                "subscriptions": [
                    {
                        "id": sub.id,
                        "topic": sub.topic.id,
                        "filter": sub.filter,
                        "filter_bytes": len(sub.filter.encode()),
                    }
                    for sub in topology.subscriptions(fleet, shard)
                ],
            }
            for shard in fleet.shards
        ],
        "strays": [
            {
                "id": stray.id,
                "topic": stray.topic.id,
                "filter": stray.filter,
                "filter_bytes": len(stray.filter.encode()),
                "blind": list(stray.blind),
            }
            for stray in topology.strays(fleet)
        ],
    }


def _types_text(shard: Any) -> str:
    if shard.types:
        return ", ".join(shard.types)
    return f"all but {', '.join(shard.except_types)}" if shard.except_types else "all"


def _proof_line(report: dict[str, Any]) -> str:
    line = f"Proof: each of {report['pairs_proved']:,} (slot, type) pairs goes to exactly one shard"
    if report["types_to_strays"]:
        line += "; a message of any other type goes to strays"
    return line + "."


def _inbox_line(report: dict[str, Any]) -> str:
    rows, size = (sum(shard[name] for shard in report["shards"]) for name in ("inbox_rows", "inbox_bytes"))
    return (
        f"Inbox: at {report['inbox_writes_per_second']:,g} writes/s (--rate), even over keys and types, the inboxes grow to "
        f"{rows:,} rows, {size_text(size)} with indexes on PostgreSQL."
    )

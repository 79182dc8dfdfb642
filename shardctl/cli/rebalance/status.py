"""`shardctl rebalance status`: its progress, from the databases alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shardctl.cli.rebalance.progress import duration
from shardctl.cli.rebalance.work import DatabaseOption, Work, rebalance_of, work_on
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, print_table, say
from shardctl.errors import EXIT_DONE

if TYPE_CHECKING:
    from shardctl.rebalance.preflight import Known

STAGES = ("waiting", "due", "left", "arrived", "broken")


def status(file: FileOption = DEFAULT_FILE, database: DatabaseOption = None, as_json: JsonOption = False) -> int:
    """Show the journal, the slots by stage, those in flight, and those that are left."""
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance.preflight import PreflightError, no_tables

    fleet = load_fleet(file)
    if not fleet.rebalancing:
        if as_json:
            print_json({"rebalance": None})
        say(f"{file}: no rebalance. `shardctl rebalance plan` begins one.")
        return EXIT_DONE
    with work_on(fleet, database) as work:
        known = work.known()
        if reasons := list(no_tables(known)):
            raise PreflightError(reasons)
        report = _report(work, known)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return EXIT_DONE


def _print(report: dict[str, Any]) -> None:
    out(f"rebalance {report['rebalance'] or 'not opened'}")
    rows = [
        (name, shard["journal"], *(f"{shard['slots'].get(stage, 0):,}" for stage in STAGES))
        for name, shard in report["shards"].items()
    ]
    print_table(("shard", "journal", *STAGES), rows, right=STAGES)
    out()
    for move in report["moves"]:
        rows_text = "rows not counted" if move["rows"] is None else f"{move['rows']:,} rows"
        out(f"to move from {move['from']} to {move['to']}: {move['slot_count']:,} slots, {rows_text}: {move['slots']}")
    if report["in_hand"]:
        out(f"in flight: {report['in_hand']}")
    if report["seconds_left"] is not None:
        out(f"at the speed of the last minute: {duration(report['seconds_left'])} left")
    if report["finishing"]:
        out("`finish` has begun: nothing leads back. `shardctl rebalance finish` again brings it to its end")
    else:
        logged = f"at most {report['way_back']['changes_at_most']:,} changes logged"
        for way, slots in (("back", report["way_back"]["slots"]), ("forward again", report["way_back"]["forward"])):
            if slots:
                out(f"can go {way} without a copy: slots {slots}; {logged}")
    for fault in report["broken"]:
        out(f"broken: {fault}")


def _report(work: Work, known: dict[str, Known]) -> dict[str, Any]:
    from shardctl.rebalance import preflight
    from shardctl.rebalance.summary import summarize
    from shardctl.status.moving import state_of

    summary = summarize(work.fleet, known, int(time.time() * 1e6))
    return {
        "rebalance": rebalance_of(work, known),
        "slots": summary.total,
        "stages": summary.stages,
        "shards": {
            name: {"journal": state_of(work.fleet, known[name]), "slots": counts}
            for name, counts in summary.by_shard.items()
        },
        "moves": [
            {
                "from": source,
                "to": destination,
                "slots": str(slots),
                "slot_count": len(slots),
                "rows": _rows(work, source, frozenset(slots)),
            }
            for (source, destination), slots in summary.moves.items()
        ],
        "in_hand": str(summary.in_flight),
        "finishing": bool(list(preflight.past_return(work.fleet, known))),
        "way_back": _way_back(work, known),
        "broken": list(summary.broken),
        "seconds_left": summary.seconds_left,
    }


def _way_back(work: Work, known: dict[str, Known]) -> dict[str, Any]:
    """The slots that can go back, or forward again, without a copy, and how long the logs of their changes are."""
    from shardctl.fleet.keyspace import SlotSet
    from shardctl.rebalance.planning import way_back
    from shardctl.shard import changes
    from shardctl.shard.database import snapshot

    logged = {
        name: [lane.slot for lane in report.lanes.values() if lane.logged_since_active]
        for name, report in known.items()
    }
    rows = 0
    for name in (name for name, slots in logged.items() if slots):
        with snapshot(work.databases[name]) as connection:
            rows += changes.most_rows(connection)
    states = way_back.course_of(work.fleet).states
    at_home = SlotSet.of(slot for name, slots in logged.items() for slot in slots if slot in states[name][0])
    away = SlotSet.of(slot for slots in logged.values() for slot in slots) - at_home
    return {"slots": str(away), "forward": str(at_home), "changes_at_most": rows}


def _rows(work: Work, source: str, slots: frozenset[int]) -> int | None:
    from shardctl.errors import ShardctlError
    from shardctl.rebalance.handover import kinds_of
    from shardctl.rebalance.rows.tables import row_counts
    from shardctl.shard.database import snapshot

    try:
        with snapshot(work.databases[source]) as connection:
            counts = row_counts(connection, kinds_of(work.fleet, source))
    except ShardctlError as error:
        say(f"rows of {source} weren't counted: {error}")
        return None
    return sum(counts[slot] for slot in slots)

"""A report as a table, as a line and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from shardctl.printable import printable_line
from shardctl.rebalance.summary import Summary
from shardctl.shard.schema import LaneState
from shardctl.status.moving import Moving
from shardctl.status.report import Report, ShardStatus

UNKNOWN = "?"
HEADERS = (
    *("shard", "slots", "ready", "backlog", "oldest", "writes/s", "rows a batch"),
    *("lock waits/s", "dups/s", "dead", "parked", "inbox rows", "inbox size", "overdue"),
)
# Left out where the terminal is narrow, in this order. Shard, ready, backlog and dead letters stay.
EXPENDABLE = (
    *("inbox rows", "dups/s", "lock waits/s", "rows a batch", "overdue", "inbox size"),
    *("slots", "parked", "oldest", "writes/s"),
)
ANY_WIDTH = 10_000


def table(report: Report, *foot: str) -> RenderableType:
    """For a terminal, as wide as it is; `foot` are lines that end it."""
    return _Fitting(report, foot)


class _Fitting:
    """Leaves out columns where the terminal is narrow, and says which: a broken number would look like another one."""

    def __init__(self, report: Report, foot: Sequence[str]) -> None:
        self._report, self._foot = report, foot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headers = list(HEADERS)
        anywhere = options.update_width(ANY_WIDTH)
        drawn = _drawn(self._report, headers)
        for header in EXPENDABLE:
            if console.measure(drawn, options=anywhere).maximum <= options.max_width:
                break
            headers.remove(header)
            drawn = _drawn(self._report, headers)
        yield drawn
        yield from (Text(printable_line(text), style=style) for text, style in below(self._report))
        if missing := [header for header in HEADERS if header not in headers]:
            yield Text(f"not shown, since the terminal is narrow: {', '.join(missing)}", style="dim")
        yield from (Text(printable_line(line)) for line in self._foot)


def _drawn(report: Report, headers: Sequence[str]) -> Table:
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in headers:
        drawn.add_column(header, justify="left" if header == "shard" else "right", overflow="fold")
    for shard in report.shards:
        row = dict(zip(HEADERS, cells(shard), strict=True))
        short = shard.work.ready is not None and shard.work.ready != shard.work.replicas
        styles = {"ready": "yellow" if short else ""}
        drawn.add_row(*(Text(row[header], style=styles.get(header, "")) for header in headers))
    return drawn


def line(report: Report) -> str:
    """For a log: one line for each look."""
    shards = (
        f"{shard.name} {_part(shard)} ready, backlog {_count(shard.backlog)}, "
        f"applied {_count(shard.work.applied)} ({_figure(shard.work.writes_per_second)}/s)"
        for shard in report.shards
    )
    parts = [*shards, _foot(report)]
    if report.moving and report.moving.summary:
        parts.append(_progress(report.moving.summary))
    troubles = sum(len(shard.troubles) for shard in report.shards) + len(report.troubles)
    if troubles:
        parts.append(f"degraded: {troubles:,}")
    if report.unknown:
        parts.append(f"not known: {', '.join(report.unknown)}")
    return "   ".join(parts)


def as_json(report: Report) -> dict[str, Any]:
    """For a machine: null is an unknown value, and `unknown` says why."""
    return {
        "fleet": report.fleet,
        "at": report.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "shards": [_shard_json(shard) for shard in report.shards],
        "dead_letters": report.dead_letters,
        "strays": report.strays,
        "rebalance": _moving_json(report.moving) if report.moving else None,
        "troubles": list(report.troubles),
        "unknown": dict(report.unknown),
    }


def _shard_json(shard: ShardStatus) -> dict[str, Any]:
    work = shard.work
    return {
        "name": shard.name,
        "slots": shard.slots,
        "backlog": shard.backlog,
        "oldest_seconds": shard.oldest_seconds,
        "replicas": work.replicas,
        "ready": work.ready,
        "writes_per_second": work.writes_per_second,
        "rows_a_batch": work.rows_a_batch,
        "locks_contended_per_second": work.locks_contended_per_second,
        "duplicates_per_second": work.duplicates_per_second,
        "applied": work.applied,
        "duplicates": work.duplicates,
        "dead_lettered": work.dead_lettered,
        "parked_keys": shard.parked_keys,
        "parked_messages": shard.parked_messages,
        "inbox_rows": work.inbox_rows,
        "inbox_bytes": work.inbox_bytes,
        "inbox_overdue_seconds": work.inbox_overdue_seconds,
        "lanes": None if shard.lanes is None else dict(shard.lanes),
        "troubles": list(shard.troubles),
    }


def _moving_json(moving: Moving) -> dict[str, Any]:
    summary = moving.summary
    return {
        "id": moving.id,
        "states": dict(moving.states),
        "slots": summary and summary.total,
        "stages": summary and {str(stage): count for stage, count in summary.stages.items()},
        "moves": summary
        and [
            {"from": source, "to": destination, "slots": str(slots), "slot_count": len(slots)}
            for (source, destination), slots in summary.moves.items()
        ],
        "in_hand": summary and str(summary.in_flight),
        "seconds_left": summary and summary.seconds_left,
        "broken": summary and list(summary.broken),
    }


def cells(shard: ShardStatus) -> tuple[str, ...]:
    work = shard.work
    return (
        shard.name,
        f"{shard.slots:,}",
        _part(shard),
        _count(shard.backlog),
        UNKNOWN if shard.oldest_seconds is None else duration(shard.oldest_seconds),
        _figure(work.writes_per_second),
        _figure(work.rows_a_batch),
        _figure(work.locks_contended_per_second),
        _figure(work.duplicates_per_second),
        _count(work.dead_lettered),
        _count(shard.parked_keys),
        _count(work.inbox_rows),
        UNKNOWN if work.inbox_bytes is None else size(work.inbox_bytes),
        UNKNOWN if work.inbox_overdue_seconds is None else duration(work.inbox_overdue_seconds),
    )


def below(report: Report) -> Iterator[tuple[str, str]]:
    """The lines under the table, with a style each."""
    yield _foot(report), ""
    if report.moving:
        yield from ((text, "") for text in _moving(report.moving))
    if report.moving or any(_odd(shard) for shard in report.shards):
        for shard in report.shards:
            if shard.lanes:
                states = ", ".join(f"{count:,} {state}" for state, count in shard.lanes.items() if count)
                yield f"slots in the database of {shard.name}: {states or 'none'}", ""
    for shard in report.shards:
        for trouble in shard.troubles:
            yield f"{shard.name}: {trouble}", "yellow"
    for trouble in report.troubles:
        yield trouble, "yellow"
    for what, why in report.unknown.items():
        yield f"not known: {what}: {why}", "dim"


def _odd(shard: ShardStatus) -> bool:
    return shard.lanes is not None and any(count for state, count in shard.lanes.items() if state != LaneState.ACTIVE)


def _moving(moving: Moving) -> Iterator[str]:
    states = ", ".join(f"{name} {state}" for name, state in moving.states.items())
    if moving.summary is None:
        yield f"rebalance {moving.id or 'not known'} ({states or 'nothing known'})"
        return
    yield f"rebalance {moving.id or 'not opened'} ({states}): {_progress(moving.summary)}"
    for (source, destination), slots in moving.summary.moves.items():
        yield f"  to move from {source} to {destination}: {len(slots):,} slots"
    for fault in moving.summary.broken[:5]:
        yield f"  broken: {fault}"


def _progress(summary: Summary) -> str:
    stages = ", ".join(f"{count:,} {stage}" for stage, count in summary.stages.items() if count and stage != "arrived")
    progress = f"{summary.stages.get('arrived', 0):,} of {summary.total:,} slots handed over"
    progress += f" ({stages})" if stages else ""
    return progress + (f", about {duration(summary.seconds_left)} left" if summary.seconds_left else "")


def _foot(report: Report) -> str:
    return f"dead letters {_count(report.dead_letters)}   strays {_count(report.strays)}"


def _part(shard: ShardStatus) -> str:
    if shard.work.replicas is None:
        return UNKNOWN
    return f"{_count(shard.work.ready)}/{shard.work.replicas}"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _figure(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def size(count: int) -> str:
    """`812 B`, `3.4 MB`, `120 GB`: in powers of 1,000."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1_000**power:
            return f"{_figure(count / 1_000**power)} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"

"""How long writes waited while slots moved: from publish, as the publisher noted it, to commit, by the databases' clock.

Only PostgreSQL reports when a transaction committed. A moved slot's inbox rows are copies at their new place; of a message in two
places, the earlier commit is that of its write. So this is read before `finish` deletes the originals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from shardctl.shard.schema import published

EARLIER_SECONDS = 5.0  # a message published before the window may be committed in it

_WRITES = (
    "SELECT slot, replace(CAST(identity AS text), '-', ''), "
    "extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM shardctl_inbox WHERE published >= :since"
)
_BEGINNINGS = (
    "SELECT slot, barrier_time_us / 1e6::float8, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 "
    "FROM shardctl_lanes WHERE state = 'active' AND barrier_time_us IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Commit:
    """When a message was published and when its write was committed, in seconds since 1970."""

    slot: int
    published: float
    committed: float


@dataclass(frozen=True, slots=True)
class Pauses:
    """Of the slots that had a write, or a hand-over: seconds. Percentiles are values that occurred (nearest rank)."""

    slots: int
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a hand-over: `moved` and `unmoved` are pauses from publish to commit, `closed` from barrier to the new owner.

    Rates are commits a second of the slots that stayed.
    """

    moved: Pauses | None
    closed: Pauses | None
    unmoved: Pauses | None
    rate_before: float
    rate_during: float

    @property
    def rate_ratio(self) -> float:
        return self.rate_during / self.rate_before if self.rate_before else 0.0


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds since 1970: a steady load ran alone from `quiet` on, slots were announced at `opened`, moved from `began` to
    `ended`.
    """

    quiet: float
    opened: float
    began: float
    ended: float


def effect(
    databases: Mapping[str, str],
    published_at: Mapping[bytes, float],
    moved: Collection[int],
    unmoved: Collection[int],
    times: Times,
) -> Effect | None:
    """None where the databases don't report when they commit. `published_at`: see `shardctl.local.feed`."""
    all_commits = commits(databases, published_at, times.quiet - EARLIER_SECONDS)
    if all_commits is None:
        return None
    return Effect(
        waits(all_commits, moved, times.began, times.ended),
        closures(databases, moved),
        waits(all_commits, unmoved, times.began, times.ended),
        rate(all_commits, unmoved, times.quiet, times.opened),
        rate(all_commits, unmoved, times.began, times.ended),
    )


def commits(databases: Mapping[str, str], published_at: Mapping[bytes, float], since: float) -> list[Commit] | None:
    """Every write that was published since then, once; None where the databases don't report when they commit."""
    first: dict[bytes, Commit] = {}
    for slot, digits, committed in _asked(databases, _WRITES, since=published(int(since) * 1_000_000)):
        its_identity = bytes.fromhex(digits)
        moment, known = published_at.get(its_identity), first.get(its_identity)
        if moment is not None and moment >= since and (known is None or committed < known.committed):
            first[its_identity] = Commit(slot, moment, committed)
    return list(first.values()) if _tell(databases) else None


def waits(all_commits: Iterable[Commit], slots: Collection[int], begin: float, end: float) -> Pauses | None:
    """By slot, the longest time from publish to commit of a write published from `begin` to `end`; None without any."""
    longest: dict[int, float] = {}
    for commit in all_commits:
        if commit.slot in slots and begin <= commit.published <= end:
            longest[commit.slot] = max(longest.get(commit.slot, 0.0), commit.committed - commit.published)
    return _pauses(list(longest.values()))


def closures(databases: Mapping[str, str], slots: Collection[int]) -> Pauses | None:
    """By slot, the time from its barrier's publish to the commit that let its new lane write, whether a write came or not."""
    beginnings = _asked(databases, _BEGINNINGS)
    return _pauses([committed - barrier for slot, barrier, committed in beginnings if slot in slots])


def rate(all_commits: Iterable[Commit], slots: Collection[int], begin: float, end: float) -> float:
    """Commits a second."""
    return sum(commit.slot in slots and begin <= commit.committed < end for commit in all_commits) / max(
        0.001, end - begin
    )


def _pauses(seconds: Sequence[float]) -> Pauses | None:
    ranked = sorted(seconds)
    if not ranked:
        return None
    p50, p99 = (ranked[ceil(len(ranked) * part) - 1] for part in (0.5, 0.99))
    return Pauses(len(ranked), p50, p99, ranked[-1])


def _asked(databases: Mapping[str, str], query: str, **parameters: object) -> list[tuple[Any, ...]]:
    from sqlalchemy import create_engine, text

    rows: list[tuple[Any, ...]] = []
    for url in databases.values():
        engine = create_engine(url)
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                rows += [tuple(row) for row in connection.execute(text(query), parameters)]
        engine.dispose()
    return rows


def _tell(databases: Mapping[str, str]) -> bool:
    return all(url.startswith("postgresql") for url in databases.values())

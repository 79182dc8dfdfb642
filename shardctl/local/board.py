"""How a running fleet stands at one moment, as numbers, as a table and as a line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from shardctl import topology
from shardctl.local.fleet import LocalFleet


@dataclass(frozen=True, slots=True)
class ShardStanding:
    """`applied` counts since the start; `per_second` since the standing before."""

    name: str
    slots: int
    backlog: int
    oldest_seconds: float
    applied: int
    per_second: float
    ready: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Standing:
    shards: tuple[ShardStanding, ...]
    redis_up: bool
    without_locks: int  # replicas that go on without Redis
    dead_letters: int
    strays: int
    restarts: int


class Board:
    """Takes one standing after another and works out the rates between them."""

    def __init__(self, local: LocalFleet) -> None:
        self._local = local
        self._counters: dict[str, float] = {}
        self._applied: dict[str, float] = {}
        self._taken = time.monotonic()

    def take(self) -> Standing:
        local = self._local
        subscriptions = local.subscriptions()
        metrics = {consumer.name: consumer.metrics() for consumer in local.consumers}
        now = time.monotonic()
        seconds, self._taken = max(0.001, now - self._taken), now
        shards = []
        for shard in local.spec.shards:
            # While slots move a subscription may not be there yet, or not any more.
            standing = [subscriptions[name] for name in local.subscription_ids(shard) if name in subscriptions]
            replicas = local.replicas.get(shard.name, ())
            grown = sum(self._growth(replica.name, metrics[replica.name]) for replica in replicas)
            self._applied[shard.name] = self._applied.get(shard.name, 0) + grown
            shards.append(
                ShardStanding(
                    shard.name,
                    len(shard.slots),
                    sum(each["undelivered"] for each in standing),
                    max((each["oldest_unacked_age_seconds"] for each in standing), default=0.0),
                    round(self._applied[shard.name]),
                    grown / seconds,
                    sum(replica.ready for replica in replicas),
                    len(replicas),
                )
            )
        return Standing(
            tuple(shards),
            local.redis.running,
            sum(told.get("shardctl_redis_degraded", 0) > 0 for told in metrics.values()),
            subscriptions[topology.dead_letter_subscription(local.spec)]["undelivered"],
            sum(each["undelivered"] for name, each in subscriptions.items() if topology.is_strays(local.spec, name)),
            sum(consumer.restarts for consumer in local.consumers),
        )

    def _growth(self, name: str, metrics: Mapping[str, float]) -> float:
        """What a replica has applied since the standing before. Its counter begins anew when it is started again."""
        now, before = metrics.get("shardctl_messages_applied_total"), self._counters.get(name, 0.0)
        if now is None:
            return 0.0
        self._counters[name] = now
        return now - before if now >= before else now


def table(standing: Standing) -> Group:
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("shard", "slots", "replicas ready", "backlog", "oldest", "applied", "writes/s"):
        drawn.add_column(header, justify="left" if header == "shard" else "right")
    for shard in standing.shards:
        ready = Text(f"{shard.ready} of {shard.replicas}", style="" if shard.ready == shard.replicas else "yellow")
        cells = (
            f"{shard.backlog:,}",
            f"{shard.oldest_seconds:.1f} s",
            f"{shard.applied:,}",
            f"{shard.per_second:,.0f}",
        )
        drawn.add_row(shard.name, f"{shard.slots:,}", ready, *cells)
    return Group(drawn, Text(foot(standing)))


def foot(standing: Standing) -> str:
    redis = "up" if standing.redis_up else "down"
    if standing.without_locks:
        redis += f" ({standing.without_locks} replicas work without locks)"
    return (
        f"redis {redis}   dead letters {standing.dead_letters:,}   strays {standing.strays:,}   "
        f"restarts {standing.restarts:,}"
    )


def line(standing: Standing) -> str:
    """For a log: one line a standing."""
    shards = "   ".join(
        f"{shard.name} {shard.ready}/{shard.replicas} ready, backlog {shard.backlog:,}, "
        f"applied {shard.applied:,} ({shard.per_second:,.0f}/s)"
        for shard in standing.shards
    )
    return f"{shards}   {foot(standing)}"

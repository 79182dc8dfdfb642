"""A rebalance of a running local fleet, by the code that moves slots on a cluster: planned, opened, rolled out, run, finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.local import executor, history, pauses
from shardctl.local.fleet import POLL_SECONDS, LocalFleet
from shardctl.local.pauses import Commit, Effect, Times
from shardctl.local.servers.process import wait_until
from shardctl.rebalance import backlog, closing, opening, preflight
from shardctl.rebalance.handover import participating
from shardctl.rebalance.planning.plan import Plan, plan
from shardctl.rebalance.planning.request import Request, types_of
from shardctl.rebalance.run import PARALLEL, Progress
from shardctl.shard import database
from shardctl.shard.schema import RebalanceState

DRAIN_SECONDS = 60.0
FRESH_SECONDS, BACK_OFF_SECONDS = 0.5, 20.0


class Moving:
    """`open`, `roll`, `run` and `finish`, once each and in this order; writes may go on all the time.

    `databases` are those of the shards before and after it, `group` the shards that slots move among, `moved` the slots that do.
    """

    def __init__(self, local: LocalFleet, request: Request) -> None:
        self.plan: Plan = plan(local.spec, request)
        self._local = local
        types = {types_of(shard) for shard in self.plan.changed}
        self.group = tuple(shard.name for shard in self.plan.after.shards if types_of(shard) in types)
        self.new = tuple(shard.name for shard in self.plan.after.shards if shard.previous == ())
        self.moved = frozenset(slot for move in self.plan.moves for slot in move.slots)
        self.unmoved = frozenset(slot for shard in self.plan.after.shards for slot in shard.slots) - self.moved
        self.databases = local.databases

    @classmethod
    def adding(cls, local: LocalFleet, name: str) -> Moving:
        """A request for one more shard, which takes the message types of the first one."""
        return cls(local, Request(add=(name,), like=local.spec.shards[0].name))

    def open(self) -> None:
        """New databases, journal and subscriptions. Where rows have a history, they have one in the new databases too."""
        after, local = self.plan.after, self._local
        for name in local.prepare(after):
            self.databases[name] = local.database_url(name)
            history.keep(after, after.shard(name), self.databases[name])
        opening.make_tables(after, self.databases)
        with self._engines() as engines, self._pubsub() as (publisher, subscriber):
            opening.open_rebalance(after, engines, publisher, subscriber)

    def roll(self) -> None:
        """Consumers read both generations from now on.

        A consumer that drains returns messages that it hasn't begun, and Pub/Sub redelivers them after a back-off. Such a slot
        waits for its message, not for its hand-over; so this returns when it has arrived, or after longer than any back-off.
        """
        self._local.apply(self.plan.after)
        wait_until(lambda: self._oldest_seconds() < FRESH_SECONDS, BACK_OFF_SECONDS)

    def _oldest_seconds(self) -> float:
        """The age of the oldest message that a shard has yet to ack."""
        standings, after = self._local.subscriptions(), self.plan.after
        names = [sub.id for shard in after.shards for sub in topology.every_subscription(after, shard)]
        return max(
            (standings[name]["oldest_unacked_age_seconds"] or 0.0 for name in names if name in standings), default=0.0
        )

    def run(self, look: Callable[[Progress], object] = lambda _: None, *, parallel: int = PARALLEL) -> dict[str, Any]:
        """Hand every slot over, `parallel` at once. `look` receives the progress.

        Returns what `Stats.as_json` counts. Raises ShardctlError where a slot is stuck.
        """
        taking_part = {shard.name: self.databases[shard.name] for shard in participating(self.plan.after)}
        return executor.run(self.plan.after, taking_part, self._local.environment(), look, parallel)

    def finish(self) -> None:
        """Delete moved rows at their source, and the old subscriptions; then consumers read only the new generations."""
        after, local = self.plan.after, self._local
        old = [sub.id for shard in participating(after) for sub in preflight.old_subscriptions(after, shard)]
        with self._engines() as engines, self._pubsub() as (publisher, subscriber):
            known, reasons = preflight.look(engines)
            reasons += closing.not_handed_over(after, known)
            reasons += closing.not_deletable(after, engines, known)
            if reasons:
                raise ShardctlError("; ".join(reasons))
            self._wait_drained(old, closing.last_barrier_us(known), engines)
            closing.delete_subscriptions(
                subscriber, after, [*old, *closing.old_strays(after, publisher)], lambda _: None
            )
            closing.delete_rows(after, engines, known, lambda *_: None)
            closing.close(after, engines, RebalanceState.DONE)
        local.apply(after.settled())

    def effect(self, times: Times, published_at: Mapping[bytes, float]) -> Effect | None:
        """The pauses of the hand-over, to be read before `finish`; None where the databases don't report when they commit."""
        return pauses.effect(self.databases, published_at, self.moved, self.unmoved, times)

    def commits(self, since: float, published_at: Mapping[bytes, float]) -> list[Commit] | None:
        """Every write published since then, in seconds since 1970; to be read before `finish` as well."""
        return pauses.commits(self.databases, published_at, since)

    def _wait_drained(self, subscriptions: list[str], barrier_time_us: int, engines: Mapping[str, Engine]) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            backlogs = backlog.of_broker(self._local.broker.host, self.plan.after.project, subscriptions)
            sure, unsure = closing.not_drained(subscriptions, backlogs, barrier_time_us, "")
            reasons = [*sure, *unsure, *closing.not_published(self.plan.after, engines)]
            if not reasons:
                return
            if time.monotonic() > deadline:
                raise ShardctlError("; ".join(reasons))
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _engines(self) -> Iterator[dict[str, Engine]]:
        urls = {shard.name: self.databases[shard.name] for shard in participating(self.plan.after)}
        with database.connected(self.plan.after.fleet, urls) as engines:
            yield engines

    @contextmanager
    def _pubsub(self) -> Iterator[tuple[Any, Any]]:
        from google.cloud import pubsub_v1

        with self._local.as_emulator():
            publisher, subscriber = (
                pubsub_v1.PublisherClient(
                    publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
                ),
                pubsub_v1.SubscriberClient(),
            )
        try:
            yield publisher, subscriber
        finally:
            publisher.stop()
            subscriber.close()

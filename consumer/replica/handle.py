"""The path of one batch: skip what is done → pace → lock → write, dead-letter what can't succeed → commit → barriers → ack."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from consumer.delivery import NO_SLOT, Delivery
from consumer.errors import BlockedError, SlotsWaitError, TransientError
from consumer.observability.metrics import Metrics
from consumer.observability.tracing import TRACEPARENT
from consumer.replica.batch import Batch
from consumer.store.transaction import Outcome, Passed
from shardctl.shard.schema import TABLE_NOT_READY
from shardctl.wire import barrier

log = logging.getLogger(__name__)

Result = TypeVar("Result")

REFUSALS_LOGGED_SECONDS = 60.0


class Locks(Protocol):
    async def take(self, slots: Sequence[int]) -> frozenset[int]: ...
    async def release(self, slots: Sequence[int]) -> None: ...


class Recent(Protocol):
    async def probably_done(self, deliveries: Sequence[Delivery]) -> list[Delivery]: ...
    async def mark(self, deliveries: Sequence[Delivery]) -> None: ...


class Pace(Protocol):
    async def take(self, writes: int) -> bool: ...
    async def give_back(self, writes: int) -> None: ...


class ShardStore(Protocol):
    def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome: ...
    def known(self, deliveries: Sequence[Delivery]) -> set[Delivery]: ...
    def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed: ...


class Outlet(Protocol):
    """A topic, or some: durable on return."""

    async def publish(self, deliveries: Sequence[Delivery]) -> None: ...


class Traces(Protocol):
    def settled(self, deliveries: Sequence[Delivery], began_ns: int, ended_ns: int) -> None: ...


class Acks(Protocol):
    async def ack(self, deliveries: Sequence[Delivery]) -> None: ...


@dataclass(frozen=True, slots=True)
class Handled:
    """`kept` messages are still ours, in order, and must be tried again: their lane is locked elsewhere or not active yet, or
    the process was asked to stop before it was their turn, or their lane is one of those that `later` says must wait.
    """

    kept: Sequence[Delivery]
    later: SlotsWaitError | None = None


class Handler:
    def __init__(
        self,
        locks: Locks,
        shard: ShardStore,
        dead_letters: Outlet,
        again: Outlet,
        acks: Acks,
        threads: Executor,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        *,
        recent: Recent | None = None,
        pace: Pace | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._locks, self._shard, self._acks = locks, shard, acks
        self._dead_letters, self._again = dead_letters, again
        self._threads, self._metrics, self._clock = threads, metrics, clock
        self._recent, self._pace, self._traces = recent, pace, traces
        self._refusals_logged_at = float("-inf")
        metrics.database_up.set(1)  # until a batch finds otherwise

    async def handle(self, batch: Batch) -> Handled:
        """Take a batch along its path. Raises TransientError if none of it is settled and all of it must be tried again."""
        began_ns = time.time_ns()
        known = await self._known(batch.deliveries)
        deliveries = [delivery for delivery in batch.deliveries if delivery not in known] if known else batch.deliveries
        if self._pace and deliveries and not await self._pace.take(len(deliveries)):
            await self._acks.ack([*known])
            return Handled(deliveries)
        locked = await self._locks.take(sorted({delivery.lane for delivery in deliveries} - {NO_SLOT}))
        try:
            mine = [delivery for delivery in deliveries if delivery.lane in locked or delivery.lane == NO_SLOT]
            elsewhere = [d for d in deliveries if not (d.lane in locked or d.lane == NO_SLOT)]
            if self._pace and elsewhere:
                await self._pace.give_back(len(elsewhere))
            writes = [delivery for delivery in mine if delivery.barrier is None]
            outcome, later = await self._write(writes, batch.lock_seconds)
            if outcome.again:
                await self._again.publish(outcome.again)
            early = [*outcome.held, *await self._pass_barriers(mine, outcome)]
            kept = set(early)
            settled = [delivery for delivery in mine if delivery not in kept] if kept else mine
            await self._acks.ack([*known, *settled])
            self._count(mine, outcome, later.lanes if later else frozenset(), len(known))
            if self._traces:
                self._traces.settled(settled, began_ns, time.time_ns())
        finally:
            await self._locks.release(tuple(locked))
        if self._recent:
            await self._recent.mark(settled)
        return Handled([*elsewhere, *early], later)

    async def _known(self, deliveries: Sequence[Delivery]) -> set[Delivery]:
        """Redelivered messages that the inbox has: they need no lock and no transaction."""
        probable = await self._recent.probably_done(deliveries) if self._recent else []
        return await self._in_thread(self._shard.known, probable) if probable else set()

    async def _write(
        self, mine: Sequence[Delivery], lock_seconds: float | None
    ) -> tuple[Outcome, SlotsWaitError | None]:
        """Commit what can be committed. What can't be is on the dead-letter topic before anything after it commits.

        The result's `held` includes messages of lanes that must wait alone; the other lanes don't wait with them.
        """
        await self._dead_letter(
            [delivery for delivery in mine if delivery.slot == NO_SLOT and not delivery.dead_lettered]
        )
        ordered = [delivery for delivery in mine if delivery.slot != NO_SLOT]
        apply = functools.partial(self._shard.apply, lock_seconds=lock_seconds) if lock_seconds else self._shard.apply
        waiting: list[Delivery] = []
        later: SlotsWaitError | None = None
        while ordered:
            started = time.perf_counter()
            try:
                outcome = await self._in_thread(apply, ordered)
            except SlotsWaitError as error:
                rest = [delivery for delivery in ordered if delivery.lane not in error.lanes]
                if not error.lanes or not rest:
                    raise
                waiting += (delivery for delivery in ordered if delivery.lane in error.lanes)
                ordered, later = rest, error if later is None else SlotsWaitError(str(error), later.lanes | error.lanes)
                continue
            self._metrics.transaction_seconds.observe(time.perf_counter() - started)
            if not outcome.poison:
                return replace(outcome, held=(*outcome.held, *waiting)) if waiting else outcome, later
            await self._dead_letter([delivery for delivery in outcome.poison if not delivery.parks])
        return Outcome(), None

    async def _dead_letter(self, faulty: Sequence[Delivery]) -> None:
        """Publish dead letters: once for each delivery, however often its batch is tried again."""
        if faulty:
            await self._dead_letters.publish(faulty)
            self._report(faulty)

    async def _pass_barriers(self, mine: Sequence[Delivery], outcome: Outcome) -> list[Delivery]:
        """Pass the barriers before which all is committed. Returns the others: they wait behind held messages of their lanes."""
        barriers = [delivery for delivery in mine if delivery.barrier is not None]
        waiting = {delivery.lane for delivery in outcome.held} if barriers else set()
        ready = [delivery for delivery in barriers if delivery.ends_lane and delivery.lane not in waiting]
        if ready:
            passed = await self._in_thread(self._shard.pass_barriers, ready)
            self._metrics.barriers.inc(passed.lanes)
            self._refuse(passed.refused)
        return [delivery for delivery in barriers if delivery.lane in waiting]

    def _refuse(self, barriers: Sequence[Delivery]) -> None:
        """Report barriers that nobody awaits: rarely, since any publisher can send any number of them."""
        self._metrics.barriers_refused.inc(len(barriers))
        if barriers and self._clock() >= self._refusals_logged_at + REFUSALS_LOGGED_SECONDS:
            self._refusals_logged_at = self._clock()
            log.warning(
                "a barrier was refused and changes nothing: this database doesn't await it. Find out who publishes messages with "
                "the attribute %s; `shardctl rebalance run` of this version publishes only what is awaited",
                barrier.REBALANCE,
                extra=_about("barrier_refused", barriers[0]),
            )

    async def _in_thread(self, call: Callable[[Sequence[Delivery]], Result], deliveries: Sequence[Delivery]) -> Result:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, call, deliveries)
        except TransientError as error:
            self._metrics.database_up.set(float(isinstance(error, SlotsWaitError | BlockedError)))
            raise
        self._metrics.database_up.set(1)
        return result

    def _count(self, mine: Sequence[Delivery], outcome: Outcome, waiting: frozenset[int], known: int) -> None:
        metrics = self._metrics
        for counter, count in (
            (metrics.applied, outcome.applied),
            (metrics.duplicates, outcome.duplicates + known),
            (metrics.stale, outcome.stale),
            (metrics.parked, outcome.parked),
            (metrics.held, sum(delivery.lane not in waiting for delivery in outcome.held)),
            (metrics.passed_on, outcome.passed_on),
            (metrics.published_again, len(outcome.again)),
        ):
            if count:  # few are more than 0 in a batch, and each call costs as much as another message
                counter.inc(count)
        for delivery in outcome.newly_parked:
            if delivery.fault and delivery.fault.reason == TABLE_NOT_READY:
                continue  # there may be one for each key: the maintenance reports the type
            log.warning(
                "parked its key: %s; later writes of the key wait behind it until a person releases it",
                delivery.fault,
                extra=_about("parked", delivery),
            )
        metrics.batch_rows.observe(len(mine))
        if mine:
            oldest = min([delivery.publish_time_us for delivery in mine])
            metrics.publish_to_commit_seconds.observe(max(0.0, self._clock() - oldest / 1_000_000))

    def _report(self, faulty: Sequence[Delivery]) -> None:
        for delivery in faulty:
            delivery.dead_lettered = True
            self._metrics.dead_lettered.labels(delivery.fault.reason if delivery.fault else "").inc()
            log.warning(
                "dead-lettered: %s",
                delivery.fault,
                extra=_about("dead_lettered", delivery),
            )


def _about(action: str, delivery: Delivery) -> dict[str, object]:
    return {
        "action": action,
        "slot": delivery.slot,
        "message_id": delivery.message_id,
        "partition_key": delivery.partition_key,
        "message_type": delivery.message_type,
        "traceparent": delivery.message.attributes.get(TRACEPARENT, ""),
    }

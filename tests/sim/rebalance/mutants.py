"""Executors and consumers with one mistake each. The simulation is worth something only while it finds them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from consumer.delivery import Delivery
from consumer.replica.batch import Batch
from consumer.replica.handle import Handled, Handler
from consumer.store.fence import Fence, Lanes
from consumer.store.transaction import Outcome, Passed, Store
from shardctl.rebalance import closing, copying, journal
from shardctl.rebalance.handover import HandOver, Stage
from shardctl.rebalance.run import Progress, Run
from shardctl.rebalance.tracker import InFlight
from shardctl.shard import lanes
from shardctl.shard.database import snapshot, writing
from shardctl.shard.lanes import Met
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.wire.message import Encoded
from tests.sim.broker import Habits
from tests.sim.rebalance.executor import Executor
from tests.sim.rebalance.message import BALANCE, KEYS, Write
from tests.sim.rebalance.scenario import FORWARD, Scenario, copied_in_the_pause, drawn, small
from tests.sim.rebalance.shard import ShardStore
from tests.sim.rebalance.world import Parts
from tests.sim.scenario import Fault

# -- what the consumer may do wrong --------------------------------------------------------------------------------------


def _with_lanes(change: Callable[[Lanes], Lanes]) -> Parts:
    """Consumers that take the lanes for others than they are."""

    class Mistaken(Fence):
        def share(self, connection: Connection) -> Lanes:
            return change(super().share(connection))

    return _with_fence(Mistaken)


def _with_fence(kind: type[Fence]) -> Parts:
    class Mutant(ShardStore):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            self.inner._fence = kind(self.fence._dialect)

    return Parts(store=Mutant)


def _with_store(kind: type[Store]) -> Parts:
    class Mutant(ShardStore):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            self.inner.__class__ = kind

    return Parts(store=Mutant)


def _as(state: LaneState, other: LaneState) -> Callable[[Lanes], Lanes]:
    def change(here: Lanes) -> Lanes:
        others = {
            number: dataclasses.replace(lane, state=other) if lane.state == state else lane
            for number, lane in here.others.items()
        }
        return dataclasses.replace(here, others=others)

    return change


def _due_is_active(here: Lanes) -> Lanes:
    due = {number for number, lane in here.others.items() if lane.state == LaneState.DUE}
    return dataclasses.replace(here, active=here.active | due)


def _arriving_is_nothing_to_us(here: Lanes) -> Lanes:
    """Lanes that are to come are written to as well."""
    arriving = {number for number, lane in here.others.items() if lane.state == LaneState.ARRIVING}
    return dataclasses.replace(here, active=here.active | arriving)


class StaleMap(Fence):
    """What isn't active is looked up in the map of some transactions ago."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._old: list[Lanes] = []

    def share(self, connection: Connection) -> Lanes:
        here = super().share(connection)
        self._old = [*self._old[-9:], here]
        stale = {number: lane for number, lane in self._old[0].others.items() if number not in here.active}
        return dataclasses.replace(here, others={**here.others, **stale})


class AcksAllAfterLeft(Store):
    def _elsewhere(self, connection: Connection, deliveries: Sequence[Delivery], here: Lanes) -> Outcome:
        elsewhere = super()._elsewhere(connection, deliveries, here)
        return dataclasses.replace(elsewhere, passed_on=elsewhere.passed_on + len(elsewhere.again), again=())


class PublishesAllAgain(Store):
    """What has left is published again without a look at the barrier's time."""

    def _elsewhere(self, connection: Connection, deliveries: Sequence[Delivery], here: Lanes) -> Outcome:
        late = {number: dataclasses.replace(lane, barrier_time_us=1 << 62) for number, lane in here.others.items()}
        return super()._elsewhere(connection, deliveries, dataclasses.replace(here, others=late))


class LetsGoTwice(Store):
    """A second barrier moves the time at which the lane was left."""

    def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed:
        passed = super().pass_barriers(barriers)
        with self._engine.begin() as connection:
            for delivery in barriers:
                connection.exec_driver_sql(
                    "UPDATE shardctl_lanes SET barrier_time_us = ? WHERE slot = ? AND generation = ? AND state = 'left'",
                    (delivery.publish_time_us, delivery.slot, delivery.generation),
                )
                connection.exec_driver_sql("UPDATE shardctl_fence SET version = version + 1")
        return passed


class AwaitsWhateverComes(Store):
    """Any barrier of a rebalance that is open ends the lane that it names."""

    def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed:
        with self._writing() as connection:
            for delivery in barriers:
                entry = journal.read(connection).get(delivery.barrier.rebalance)
                if entry and entry.state == RebalanceState.OPEN:
                    lanes.await_barriers(connection, [delivery.slot], delivery.generation, entry.id)
                    _end_lane(connection, delivery)
        return Passed()


class AsksForNoToken(Store):
    """So does a barrier that is awaited, by any publisher, and however long ago."""

    def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed:
        with self._writing() as connection:
            for delivery in barriers:
                _end_lane(connection, delivery)
        return Passed()


def _end_lane(connection: Connection, delivery: Delivery) -> None:
    awaited = lanes._awaited(connection, [delivery.slot], delivery.generation)
    if row := awaited.get(delivery.slot):
        lanes.leave(connection, [Met(delivery.slot, row.token, delivery.publish_time_us)], delivery.generation)


class PassesAnyBarrier(Handler):
    """Whatever shard and generation it is meant for."""

    async def _pass_barriers(self, mine: Sequence[Delivery], outcome: Outcome) -> list[Delivery]:
        for delivery in mine:
            delivery.ends_lane = delivery.barrier is not None
        return await super()._pass_barriers(mine, outcome)


class PassesBarriersFirst(Handler):
    async def handle(self, batch: Batch) -> Handled:
        await self._pass_barriers(batch.deliveries, Outcome())
        return await super().handle(batch)


class AcksBeforePublishingAgain(Handler):
    """The acks of what is to be published again are on their way before that is published."""

    async def _write(self, mine: Sequence[Delivery], lock_seconds: float | None) -> tuple[Outcome, Any]:
        outcome, waits = await super()._write(mine, lock_seconds)
        await self._acks.ack(outcome.again)
        return outcome, waits


class NewKeys(Handler):
    """What is published again counts as new."""

    async def _write(self, mine: Sequence[Delivery], lock_seconds: float | None) -> tuple[Outcome, Any]:
        outcome, waits = await super()._write(mine, lock_seconds)
        for delivery in outcome.again:
            message = type(delivery.message)()
            message.CopyFrom(delivery.message)
            message.attributes["idempotency_key"] = f"{delivery.idempotency_key}-again"
            delivery.message, delivery.keyless = message, False
        return outcome, waits


# -- what the executor may do wrong --------------------------------------------------------------------------------------


def _with_copy(after: Callable[[Connection, HandOver], None]) -> Parts:
    """Something is done to what was copied, and nobody checks it."""

    class Mutant(Executor):
        @staticmethod
        def row_copy(fleet: Any) -> copying.Copy:
            real = copying.row_copy(fleet)

            def copy(source: Connection, destination: Connection, hand_overs: Sequence[HandOver]) -> int:
                rows = real(source, destination, hand_overs)
                for hand_over in hand_overs:
                    after(destination, hand_over)
                return rows

            return copy

    return Parts(executor=Mutant)


def _deleting(*tables: str) -> Callable[[Connection, HandOver], None]:
    def delete(connection: Connection, hand_over: HandOver) -> None:
        for table in tables:
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE slot = {hand_over.slot}")

    return delete


def _as_it_was_before(connection: Connection, hand_over: HandOver) -> None:
    """A row that its last write deleted is there again."""
    write = Write(0, KEYS[hand_over.slot][-1], hand_over.slot, BALANCE)
    row = f"'{write.row}', '{write.key}', 0, {write.slot}"
    connection.exec_driver_sql(f"INSERT OR IGNORE INTO balances (id, owner, number, slot) VALUES ({row})")


def _forgets_fingerprints(connection: Connection, hand_over: HandOver) -> None:
    connection.exec_driver_sql(f"UPDATE shardctl_inbox SET fingerprint = NULL WHERE slot = {hand_over.slot}")


class KeepsLeftovers(Executor):
    """Parked messages that the slot left behind when it was here last are taken for present ones."""

    @staticmethod
    def row_copy(fleet: Any) -> copying.Copy:
        real = copying.row_copy(fleet)

        def copy(source: Connection, destination: Connection, hand_overs: Sequence[HandOver]) -> int:
            slots = ", ".join(str(hand_over.slot) for hand_over in hand_overs)
            left = {
                table: destination.exec_driver_sql(f"SELECT * FROM {table} WHERE slot IN ({slots})").all()
                for table in ("shardctl_parked_keys", "shardctl_parked")
            }
            rows = real(source, destination, hand_overs)
            for table, rows_of_table in left.items():
                for row in rows_of_table:
                    marks = ", ".join("?" for _ in row)
                    destination.exec_driver_sql(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", tuple(row))
            return rows

        return copy


def _with_run(kind: type[Run]) -> Parts:
    class Mutant(Executor):
        run_class = kind

    return Parts(executor=Mutant)


class BarrierBeforeDue(Run):
    """Slots become due a step after their barriers are awaited, and out."""

    def _begin(self, pairs: list[Any]) -> None:
        self._early = getattr(self, "_early", set())
        late = [pair for pair in pairs if pair[0] in self._early]
        for hand_over, standing in pairs:
            if hand_over not in self._early:
                self._early.add(hand_over)
                slot, source = hand_over.slot, standing.source
                with writing(self._databases[source.shard]) as connection:
                    tokens = lanes.await_barriers(connection, [slot], source.generation, self.rebalance)
                if token := tokens.get(slot):  # else it has left: another executor was faster
                    self._publish(InFlight(hand_over, standing, self._clock(), token=token), self._clock())
        self._tracker.put_back([pair for pair in pairs if pair not in late])
        super()._begin(late)


class ActivatesBeforeCopy(Run):
    def _copy_what_has_left(self, now: float) -> None:
        for in_flight in self._in_flight(Stage.LEFT):
            source = in_flight.standing.source
            if in_flight.work is None and source and source.shard != in_flight.hand_over.to.shard:
                in_flight.work = Future()
                with snapshot(self._databases[source.shard]) as out:
                    left = [
                        lane
                        for lane in lanes.read(out, (in_flight.hand_over.slot,)).values()
                        if lane.generation == source.generation
                    ]
                with writing(self._databases[in_flight.hand_over.to.shard]) as into:
                    lanes.activate(
                        into,
                        {in_flight.hand_over.slot: left[0].barrier_time_us or 0},
                        in_flight.hand_over.to.generation,
                    )
                in_flight.work = None
        super()._copy_what_has_left(now)


class AbortsAtOnce(Executor):
    """What has begun isn't brought to its end."""

    async def run(self, *, onward: bool = True, seconds: float = float("inf")) -> Progress:
        return await super().run(onward=onward, seconds=seconds if onward else 0.0)


class FinishesWithBacklog(Executor):
    """Old subscriptions are deleted with what is left in them."""

    async def finish(self) -> None:
        real = closing.not_drained
        closing.not_drained = lambda *_: ([], [])
        try:
            await super().finish()
        finally:
            closing.not_drained = real


class DeletesNothing(Executor):
    async def finish(self) -> None:
        real = closing.delete_rows
        closing.delete_rows = lambda *_: 0
        try:
            await super().finish()
        finally:
            closing.delete_rows = real


class ClosesFirst(Executor):
    """The journal is closed while barriers are out: they are ignored then."""

    async def abort(self) -> None:
        await self._call(lambda: closing.stop(self._fleet, self._engines))
        await self._call(lambda: closing.close(self._fleet, self._engines, RebalanceState.ABORTED))
        await super().abort()


class PublishesTwice(Executor):
    """Not a mistake: a second copy of a barrier changes nothing."""

    def _publish(self, message: Encoded) -> Future[Any]:
        world = self._world
        world.loop.after(0.5, world.topic.publish, None, message.data, message.attributes, self.process)
        return super()._publish(message)


TWICE = Parts(executor=PublishesTwice)


class NoWait(Run):
    def _publish_barriers(self, now: float) -> None:
        super()._publish_barriers(now + 1.0)


def _redelivering(seed: int) -> Scenario:
    """Acks get lost and leases end: what was published between two copies of a barrier comes again after the second."""
    return dataclasses.replace(small(seed), habits=Habits(drop_ack=0.3, end_lease_early=0.3, forget_ack=1.0))


def _small_and_broken(seed: int) -> Scenario:
    return small(seed, broken_order=True)


def _hostile(seed: int) -> Scenario:
    return dataclasses.replace(small(seed), hostile=True)


def _hostile_and_slow(seed: int) -> Scenario:
    """What is forged while the slot is arriving is met once it is due: the replica of the old lane was frozen meanwhile."""
    return dataclasses.replace(small(seed), hostile=True, faults=[Fault(2.7, "freeze", 2.0, 0)], run_at=3.2)


def _sparse_and_slow(seed: int) -> Scenario:
    """Few transactions come between due and what was published since the barrier, and that comes while the slot is due."""
    made = small(seed)
    sparse = [dataclasses.replace(publication, at=publication.at * 3) for publication in made.publications]
    return dataclasses.replace(made, publications=sparse, faults=[Fault(3.0, "freeze", 3.0, 0)], run_at=3.2)


def _there_and_back(seed: int) -> Scenario:
    return dataclasses.replace(small(seed), script=("start", "run", "abort", "back", *FORWARD))


def _early(seed: int) -> Scenario:
    """Slots are handed over before anybody reads the new generations."""
    return dataclasses.replace(small(seed), run_at=0.0)


def _after_the_rollout(seed: int) -> Scenario:
    """The new generations are read, and what they carry is acked, before the first slot is due."""
    return dataclasses.replace(small(seed, broken_order=True), run_at=3.2)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`seeds`: within how many schedules it must be found. The search ends at the first, which any change of the code moves."""

    parts: Parts
    scenario: Callable[[int], Scenario] = drawn
    seeds: int = 100


IN_THE_PAUSE = copied_in_the_pause()
MUTANTS = {
    "acks what is due": Mutant(_with_lanes(_as(LaneState.DUE, LaneState.ARRIVING))),
    "writes what is due": Mutant(_with_lanes(_due_is_active)),
    "writes what is to come": Mutant(_with_lanes(_arriving_is_nothing_to_us)),
    "reads a stale map": Mutant(_with_fence(StaleMap), _sparse_and_slow),
    "acks all after its barrier": Mutant(_with_store(AcksAllAfterLeft), _small_and_broken),
    "publishes all again": Mutant(_with_store(PublishesAllAgain)),
    "awaits whatever comes": Mutant(_with_store(AwaitsWhateverComes), _hostile),
    "asks for no token": Mutant(_with_store(AsksForNoToken), _hostile_and_slow),
    "passes any barrier": Mutant(
        dataclasses.replace(_with_store(AwaitsWhateverComes), handler=PassesAnyBarrier), _early
    ),
    "lets go twice": Mutant(dataclasses.replace(TWICE, store=_with_store(LetsGoTwice).store), _redelivering, seeds=250),
    "passes barriers first": Mutant(Parts(handler=PassesBarriersFirst)),
    "acks before publishing again": Mutant(Parts(handler=AcksBeforePublishingAgain), _small_and_broken),
    "publishes again under a new key": Mutant(Parts(handler=NewKeys), _small_and_broken),
    "leaves the inbox behind": Mutant(_with_copy(_deleting("shardctl_inbox")), IN_THE_PAUSE),
    "leaves fingerprints behind": Mutant(_with_copy(_forgets_fingerprints), IN_THE_PAUSE),
    "leaves what is parked behind": Mutant(
        _with_copy(_deleting("shardctl_parked", "shardctl_parked_keys")), copied_in_the_pause(small)
    ),
    "leaves rows behind": Mutant(_with_copy(_deleting("entries")), IN_THE_PAUSE),
    "brings a deleted row back": Mutant(_with_copy(_as_it_was_before), IN_THE_PAUSE),
    "keeps what was parked before": Mutant(Parts(executor=KeepsLeftovers), copied_in_the_pause(_there_and_back)),
    "publishes barriers before due": Mutant(_with_run(BarrierBeforeDue)),
    "activates before the copy": Mutant(_with_run(ActivatesBeforeCopy)),
    "aborts at once": Mutant(Parts(executor=AbortsAtOnce)),
    "closes the journal first": Mutant(Parts(executor=ClosesFirst)),
    "finishes with a backlog": Mutant(Parts(executor=FinishesWithBacklog), _small_and_broken),
    "deletes nothing": Mutant(Parts(executor=DeletesNothing)),
    "publishes barriers at once": Mutant(_with_run(NoWait), _after_the_rollout),
}

"""Consumers with one mistake each. The simulation is worth something only while it finds them all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from consumer.delivery import Delivery
from consumer.errors import TransientError
from consumer.intake.pull import Intake
from consumer.redis.lock import SlotLocks
from consumer.replica.batch import Batch, Batcher
from consumer.replica.handle import Handled, Handler
from consumer.replica.lifecycle import Replica
from consumer.store.transaction import Outcome
from shardctl.wire import identity
from tests.sim.database import SimStore, Transaction, identity_of
from tests.sim.network import Answer
from tests.sim.world import Parts


class AcksBeforeCommit(Handler):
    async def handle(self, batch: Batch) -> Handled:
        await self._acks.ack(batch.deliveries)
        return await super().handle(batch)


class AcksWhatIsKept(Handler):
    """A slot locked elsewhere taken for a slot done elsewhere."""

    async def handle(self, batch: Batch) -> Handled:
        handled = await super().handle(batch)
        await self._acks.ack(handled.kept)
        return Handled(())


class DropsWhatIsKept(Handler):
    """The same, left to the broker to bring again, while its lease is renewed for ever."""

    async def handle(self, batch: Batch) -> Handled:
        await super().handle(batch)
        return Handled(())


class ForgetsFailedBatches(Handler):
    async def handle(self, batch: Batch) -> Handled:
        try:
            return await super().handle(batch)
        except TransientError:
            return Handled(())


class DeadLettersInBackground(Handler):
    """What follows poison commits before the poison is dead-lettered."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        publish = self._dead_letters.publish

        class Background:
            async def publish(self, deliveries: Sequence[Delivery]) -> None:
                self.task = asyncio.create_task(_quietly(publish(deliveries)))

        self._dead_letters = Background()


async def _quietly(publishing) -> None:
    with contextlib.suppress(TransientError):
        await publishing


class SkipsInbox(SimStore):
    """Records, and applies whatever the inbox says."""

    def _record(self, transaction: Transaction, deliveries: Sequence[Delivery], answer: Answer) -> None:
        everything = {identity_of(delivery) for delivery in deliveries}
        super()._record(
            transaction, deliveries, lambda fresh: answer(fresh if isinstance(fresh, Exception) else everything)
        )


class _Identifies(SimStore):
    """Knows a write by less, or more, than it should."""

    def rule(self, delivery: Delivery) -> bytes:
        raise NotImplementedError

    async def apply(self, deliveries: Sequence[Delivery]) -> Outcome:
        for delivery in deliveries:
            if delivery.fault is None:
                delivery.identity = identity.in_slot(self.rule(delivery), delivery.slot)
        return await super().apply(deliveries)


class TakesOneCallersKeyForAnothers(_Identifies):
    def rule(self, delivery: Delivery) -> bytes:
        if delivery.keyless:
            return identity.of_message(delivery.idempotency_key)
        return identity.of_key("", delivery.message_type, delivery.idempotency_key)


class TakesOneTypesKeyForAnothers(_Identifies):
    def rule(self, delivery: Delivery) -> bytes:
        if delivery.keyless:
            return identity.of_message(delivery.idempotency_key)
        caller = delivery.message.attributes.get("caller", "")
        return identity.of_key(caller, "", delivery.idempotency_key)


class TakesAKeyForAMessageId(_Identifies):
    def rule(self, delivery: Delivery) -> bytes:
        caller = delivery.message.attributes.get("caller", "")
        return identity.of_key(caller, delivery.message_type, delivery.idempotency_key)


class DropsReusedKeys(SimStore):
    """Whatever has the identity of a recorded write counts as a second copy of it."""

    def _reused(self, transaction: Transaction, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return []


class ForgetsTheKey(_Identifies):
    """A producer's retry has a message id of its own."""

    def rule(self, delivery: Delivery) -> bytes:
        return identity.of_message(delivery.message_id)


class RecordsFirst(SimStore):
    """The inbox in one transaction, its effects in a second."""

    async def _commit(self, transaction: Transaction) -> None:
        writes, transaction.writes = transaction.writes, []
        await super()._commit(transaction)
        second = self._database.begin(transaction.process)
        second.writes = writes
        await super()._commit(second)


class AppliesFirst(SimStore):
    """The effects in one transaction, their inbox rows in a second."""

    async def _commit(self, transaction: Transaction) -> None:
        first = self._database.begin(transaction.process)
        first.writes, transaction.writes = transaction.writes, []
        await super()._commit(first)
        await super()._commit(transaction)


class PutsBackLast(Batcher):
    """A failed batch goes behind what came for its slots meanwhile."""

    def back(self, batch: Batch, unsettled: Iterable[Delivery], not_before: float) -> None:
        super().done(batch)
        super().add(unsettled, not_before)


class SharesSlots(Batcher):
    """Two batches of one slot may be under way at once."""

    def take(self, now: float) -> Batch | None:
        batch = super().take(now)
        if batch:
            super().done(batch)
        return batch

    def done(self, batch: Batch) -> None:
        pass

    def back(self, batch: Batch, unsettled: Iterable[Delivery], not_before: float) -> None:
        super().add(unsettled, not_before)


class WaitsTogether(Batcher):
    """A batch in which one slot is blocked stays together."""

    def split(self, batch: Batch, not_before: float) -> None:
        super().back_whole(batch, not_before)


class PausesForOne(Replica):
    """Nothing is received while one slot waits."""

    def _wait_alone(self, batch: Batch, error: TransientError) -> None:
        super()._wait_alone(batch, error)
        self._intake.pause()

    def _go_on(self) -> None:
        super()._go_on()
        if not self._failures:
            self._intake.resume()


class HandsBackFirst(Replica):
    """A drain that gives messages away while earlier ones of their slots are still being applied."""

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        await self._intake.stop_reading()
        await self._intake.hand_back(self._batcher.drain())
        await super()._drain(workers)


class NeverRenews(Intake):
    def start(self, deliver, pause_left):
        self._leases.keep = asyncio.Event().wait
        super().start(deliver, pause_left)


class NeverResumes(Intake):
    def resume(self) -> None:
        pass


class OneClientId(Intake):
    """A new stream that claims to be the old one: what was lost on the old one's way counts as given."""

    async def _requests(self, stream):
        async for request in super()._requests(stream):
            if request.subscription:
                request.client_id = f"{id(self)}"
            yield request


class NoLocks(SlotLocks):
    """Not a mistake: safety must not rest on locks."""

    async def take(self, slots: Sequence[int]) -> frozenset[int]:
        return frozenset(slots)

    async def release(self, slots: Sequence[int]) -> None:
        pass


def _with_batcher(kind: type[Batcher]) -> Parts:
    def patch(replica: Replica) -> None:
        replica._batcher.__class__ = kind

    return Parts(patch=patch)


NO_LOCKS = Parts(locks=NoLocks)


WAITING_MUTANTS = {
    "what is blocked stays together": _with_batcher(WaitsTogether),
    "nothing is taken in while one waits": Parts(replica=PausesForOne),
}


@dataclass(frozen=True, slots=True)
class Mutant:
    parts: Parts
    seeds: int  # within how many it must be found: a few times what it takes today
    hand_over: bool = False


MUTANTS = {
    "acks before commit": Mutant(Parts(handler=AcksBeforeCommit), 10),
    "acks what is locked elsewhere": Mutant(Parts(handler=AcksWhatIsKept), 50),
    "drops what is locked elsewhere": Mutant(Parts(handler=DropsWhatIsKept), 200),
    "forgets failed batches": Mutant(Parts(handler=ForgetsFailedBatches), 50),
    "dead-letters in the background": Mutant(Parts(handler=DeadLettersInBackground), 50),
    "skips the inbox": Mutant(Parts(store=SkipsInbox), 50),
    "takes one caller's key for another's": Mutant(Parts(store=TakesOneCallersKeyForAnothers), 100),
    "takes one type's key for another's": Mutant(Parts(store=TakesOneTypesKeyForAnothers), 100),
    "takes a key for a message id": Mutant(Parts(store=TakesAKeyForAMessageId), 100),
    "drops a reused key's write": Mutant(Parts(store=DropsReusedKeys), 100),
    "forgets the key": Mutant(Parts(store=ForgetsTheKey), 100),
    "records first, applies later": Mutant(Parts(store=RecordsFirst), 100),
    "applies first, records later": Mutant(Parts(store=AppliesFirst), 100),
    "puts a failed batch back last": Mutant(_with_batcher(PutsBackLast), 50),
    "lets two batches share a slot": Mutant(_with_batcher(SharesSlots), 50),
    "hands back before the end": Mutant(Parts(replica=HandsBackFirst), 600),
    "never renews a lease": Mutant(Parts(intake=NeverRenews), 150),
    "never takes messages in again": Mutant(Parts(intake=NeverResumes), 100),
    "keeps its client id": Mutant(Parts(intake=OneClientId), 300, hand_over=True),
}

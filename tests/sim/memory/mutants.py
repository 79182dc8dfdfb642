"""Shards and desks that remember too little, or rely on it for too long. The simulation must find each of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection

from consumer.delivery import Delivery
from consumer.store import inbox as store_inbox
from consumer.store import sweep
from consumer.store.inbox import Inbox
from consumer.store.parked import Parked
from consumer.store.sweep import At, Retention, Swept
from consumer.store.transaction import Outcome, Store
from shardctl.deadletter.inboxes import GO, Inboxes, Known, Verdict
from shardctl.deadletter.later import slot_of
from shardctl.deadletter.letter import Letter, note_of
from shardctl.fleet import topology
from shardctl.shard import schema
from shardctl.shard.schema import InboxOutcome, inbox
from tests.sim.memory.shard import FLEET
from tests.sim.memory.world import Parts, retention


def _applied_for(kept: timedelta) -> Parts:
    return Parts(retention=lambda: replace(retention(), applied=int(kept.total_seconds())))


def _letters_for(kept: timedelta) -> Parts:
    return Parts(retention=lambda: replace(retention(), letters=int(kept.total_seconds())))


class _Purges(Store):
    """Forgets by a rule of its own."""

    def rule(self, old: Retention) -> ColumnElement[bool]:
        raise NotImplementedError

    def purge(self, retention: Retention, at: At, pages: int) -> Swept:
        with self._writing() as connection:
            now = schema.published_now(connection)
            before = Retention(now - retention.applied, now - retention.letters)
            return sweep.chunk(connection, self.rule(before), at, pages)


class ForgetsLettersWithWhatIsApplied(_Purges):
    def rule(self, old: Retention) -> ColumnElement[bool]:
        outcome = inbox.c.outcome
        return (outcome.is_(None) | (outcome != InboxOutcome.PARKED)) & (inbox.c.published < old.applied)


class ForgetsWhatIsParked(_Purges):
    def rule(self, old: Retention) -> ColumnElement[bool]:
        outcome = inbox.c.outcome
        short, long = outcome.is_(None) | (outcome == InboxOutcome.PARKED), outcome.is_not(None)
        return (short & (inbox.c.published < old.applied)) | (long & (inbox.c.published < old.letters))


class RemembersReleasedFromTheirMessage(Store):
    """Copies that were published while a write was parked don't count."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._parked.__class__ = _KeepsTheTime


class _KeepsTheTime(Parked):
    def _settle(self, connection: Connection, deliveries: Sequence[Delivery], outcome: InboxOutcome) -> None:
        if outcome != InboxOutcome.APPLIED:
            super()._settle(connection, deliveries, outcome)
            return
        for delivery in deliveries:
            row = (inbox.c.slot == delivery.slot) & (inbox.c.identity == delivery.identity)
            connection.execute(inbox.update().where(row).values(outcome=None))


class ByTheProducersClock(Store):
    """Rows are remembered from when the producer says that it made the write."""

    def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome:
        for delivery in deliveries:
            delivery.publish_time_us = int(json.loads(delivery.message.data)["made"] * 1_000_000)
        return super().apply(deliveries, lock_seconds)


class ByTheFirstCopyAlone(Store):
    """A duplicate that was published much later makes no difference."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._inbox.__class__ = _NeverRefreshes


class _NeverRefreshes(Inbox):
    def _remember_longer(
        self, connection: Connection, deliveries: Sequence[Delivery], known: store_inbox.Known
    ) -> list[Delivery]:
        return []


class ReplaysWhatIsForgotten(Inboxes):
    def _forgotten(self, letter: Letter, shard: str) -> Verdict | None:
        return None


class TrustsTheWholeRetention(Inboxes):
    """A letter counts as the first copy of its write."""

    def _forgotten(self, letter: Letter, shard: str) -> Verdict | None:
        young = replace(letter, written_us=letter.written_us + int(topology.RETRIED_WITHIN.total_seconds()) * 1_000_000)
        return super()._forgotten(young, shard)


class TrustsItsNote(Inboxes):
    """What was replayed once may be replayed again, however long ago it was."""

    def _verdict(self, letter: Letter, shard: str, known: Known) -> Verdict:
        row, note = (slot_of(letter), letter.write_identity), (slot_of(letter), note_of(letter))
        return GO if note in known and row not in known else super()._verdict(letter, shard, known)


class ForgetsEverythingElse(Inboxes):
    """Refuses whatever is old, also what is known to be dead."""

    def _verdict(self, letter: Letter, shard: str, known: Known) -> Verdict:
        return self._forgotten(letter, shard) or super()._verdict(letter, shard, known)


@dataclass(frozen=True, slots=True)
class Mutant:
    parts: Parts
    seeds: int  # within how many it must be found: a few times what it takes today


_REACH, _RETENTION = topology.redelivery_reach(FLEET), FLEET.subscription.retention
MUTANTS = {
    "forgets before Pub/Sub does": Mutant(_applied_for(_RETENTION - timedelta(days=1)), 40),
    "forgets with the first message": Mutant(_applied_for(_RETENTION), 40),
    "forgets letters with what is applied": Mutant(Parts(store=ForgetsLettersWithWhatIsApplied), 60),
    "forgets what is parked": Mutant(Parts(store=ForgetsWhatIsParked), 100),
    "remembers what was released from its message": Mutant(Parts(store=RemembersReleasedFromTheirMessage), 100),
    "forgets letters before the last of them goes": Mutant(
        _letters_for(topology.KEPT_FOR_PEOPLE - timedelta(days=1)), 200
    ),
    "forgets by the producer's clock": Mutant(Parts(store=ByTheProducersClock), 40),
    "forgets by the first copy": Mutant(Parts(store=ByTheFirstCopyAlone), 200),
    "replays what is forgotten": Mutant(Parts(inboxes=ReplaysWhatIsForgotten), 40),
    "trusts the whole retention": Mutant(Parts(inboxes=TrustsTheWholeRetention), 100),
    "trusts the note of a replay": Mutant(Parts(inboxes=TrustsItsNote), 60),
    "refuses whatever is old": Mutant(Parts(inboxes=ForgetsEverythingElse), 60),
}

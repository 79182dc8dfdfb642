"""Which write is asked for, and what became of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from shardctl.errors import UsageError
from shardctl.fleet.settings.routing import Attributes
from shardctl.wire import identity
from shardctl.wire.message import Encoded


class State(StrEnum):
    APPLIED = "applied"  # its effect is committed
    PARKED = "parked"  # it waits in order, behind a write that failed or as that one, for a person
    DEAD = "dead"  # it is a dead letter: applied by nobody unless a person replays it
    NOT_SEEN = "not_seen"  # not yet; or so long ago that the inbox has forgotten it
    UNKNOWN = "unknown"  # nobody could look


FINAL = frozenset({State.APPLIED, State.PARKED, State.DEAD})  # nothing changes by waiting, unless a person acts


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of a write. True where it is applied.

    `reason`: of a parked or dead write, where the inbox knows it; of an unknown one, why nobody could look. `shard` has the slot.
    """

    state: State
    reason: str = ""
    shard: str = ""

    def __bool__(self) -> bool:
        return self.state is State.APPLIED


TOO_MANY_WAIT = Effect(State.UNKNOWN, "too many requests wait already")


def members(effect: Effect) -> dict[str, str]:
    """What an answer in JSON says of a write."""
    return {"outcome": effect.state.value, **({"reason": effect.reason} if effect.reason else {})}


@dataclass(frozen=True, slots=True)
class Sought:
    """A write as the inbox knows it, in its slot. `fingerprint` is None where the caller doesn't know what the write says."""

    slot: int
    identity: bytes
    message_type: str
    key: str
    fingerprint: int | None = None

    @classmethod
    def of_key(
        cls, caller: str, message_type: str, key: str, idempotency_key: str, slot: int, fingerprint: int | None = None
    ) -> Self:
        """`caller` is who wrote it: nobody finds the write of another."""
        its_identity = identity.of_key(caller, message_type, idempotency_key)
        return cls(slot, identity.in_slot(its_identity, slot), message_type, key, fingerprint)

    @classmethod
    def of_message(cls, encoded: Encoded, names: Attributes) -> Self:
        """A write as it was published. Raises UsageError where it has no idempotency key."""
        sent = encoded.attributes
        idempotency_key = sent.get(names.idempotency_key)
        if idempotency_key is None:
            raise UsageError(
                "a write without an idempotency key can't be asked for: give the Write an `idempotency_key`."
            )
        key, kind = sent[names.partition_key], sent[names.message_type]
        fingerprint = identity.fingerprint(sent.get(names.operation, ""), key, encoded.data)
        return cls.of_key(sent.get(names.caller, ""), kind, key, idempotency_key, encoded.slot, fingerprint)

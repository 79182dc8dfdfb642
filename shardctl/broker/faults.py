"""Injected faults: what a real service does occasionally, at a chosen rate, reproducible by seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardctl.broker.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates are probabilities, 0 to 1. Each kind draws from its own generator, so one doesn't shift another's draws.

    duplicate_rate      an ack is taken, yet the message is delivered again; with an ordering key, so is every later
                        message of the key that was already delivered, in order
    early_expiry_rate   a lease ends within half a second, while its reader still works on the message
    replay_acked        redelivery of a message of an ordering key takes the acked later ones along
    drop_ack_rate       an ack is answered with success and forgotten
    delay_rate          a message is first delivered only after up to `delay_seconds`; its key waits with it
    reorder_rate        a batch without ordering is shuffled
    cut_stream_rate     a StreamingPull ends with UNAVAILABLE after a response
    unavailable_rate    a unary call is refused with UNAVAILABLE, without effect
    lost_reply_rate     a Publish or Acknowledge takes effect and is answered with UNAVAILABLE
    """

    seed: int = 0
    duplicate_rate: float = 0.0
    early_expiry_rate: float = 0.0
    replay_acked: bool = False
    drop_ack_rate: float = 0.0
    delay_rate: float = 0.0
    delay_seconds: float = 1.0
    reorder_rate: float = 0.0
    cut_stream_rate: float = 0.0
    unavailable_rate: float = 0.0
    lost_reply_rate: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_rate") and not 0 <= value <= 1:
                raise InvalidArgumentError(f"{field.name} is {value}; a rate lies between 0 and 1.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Faults:
        """Refuses names that aren't faults: a misspelt fault would silently test nothing."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidArgumentError(f"No such fault: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        return cls(**values)


NONE = Faults()


class Injector:
    """Draws the faults. One broker has one, so that all its subscriptions change at once."""

    def __init__(self, faults: Faults = NONE) -> None:
        self.set(faults)

    def set(self, faults: Faults) -> None:
        """Replaces every fault and starts the draws again from the seed."""
        self.faults = faults
        self._draws: dict[str, random.Random] = {}

    def draw(self, kind: str) -> random.Random:
        if kind not in self._draws:
            self._draws[kind] = random.Random(f"{self.faults.seed}/{kind}")
        return self._draws[kind]

    def happens(self, kind: str, rate: float) -> bool:
        return rate > 0 and self.draw(kind).random() < rate

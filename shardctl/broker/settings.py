"""What a subscription's core needs to know of its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from shardctl.broker.filter import Predicate
from shardctl.supervision.backoff import WITHOUT_CHANCE, backoff

DEFAULT_ACK_DEADLINE_SECONDS = 10
DEFAULT_RETENTION_SECONDS = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Backoff:
    minimum_seconds: float = 10.0
    maximum_seconds: float = 600.0

    def after(self, failures: int) -> float:
        """Seconds to wait after that many failures: doubling from the minimum up to the maximum."""
        return backoff(failures, self.minimum_seconds, self.maximum_seconds, WITHOUT_CHANCE)


@dataclass(frozen=True, slots=True)
class Settings:
    """`max_attempts` is 0 without a dead-letter policy; without `backoff` a failed message comes again at once."""

    ordering: bool = False
    exactly_once: bool = False
    ack_deadline_seconds: float = DEFAULT_ACK_DEADLINE_SECONDS
    retention_seconds: float = DEFAULT_RETENTION_SECONDS
    retain_acked: bool = False
    backoff: Backoff | None = None
    max_attempts: int = 0
    dead_letter_topic: str = ""
    matches: Predicate | None = None

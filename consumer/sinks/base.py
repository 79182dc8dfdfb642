from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection

from consumer.delivery import Delivery


class Sink(Protocol):
    """Takes the new messages of a batch, in order, inside the transaction that also records them in the inbox."""

    def check(self, delivery: Delivery) -> None:
        """Read the body before any transaction. Raises NeverError when the write can't ever succeed."""

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """Bring the writes about; the count of those that were stale. Raises DataFaultError when one of them can't be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

from consumer.delivery import Delivery
from consumer.errors import PermanentError
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.changes import Change
from shardctl.wire import bodies


class Sink(Protocol):
    """Applies the new messages of a batch, in order, inside the transaction that also records them in the inbox.

    Called from several threads at once, each with a transaction of its own and with slots that no other has. docs/sinks.md says
    how to write one.
    """

    def check(self, delivery: Delivery) -> None:
        """Read the body before any transaction. Raises PermanentError when the write can't ever succeed."""

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """Apply the writes; returns how many were stale.

        Raises DataFaultError if one of them can't succeed: the caller finds which by trying smaller shares. Raises TransientError
        if it may work later. In both cases everything that this call wrote is rolled back.
        """


class LoggedSink(Sink, Protocol):
    """A sink as the store has it: it also names what its writes change."""

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        """Where to look for what these writes have changed, or more: see `shardctl.shard.changes`."""


def json_object(delivery: Delivery) -> dict[str, Any]:
    """The body as a JSON object. Raises PermanentError."""
    try:
        return bodies.read(delivery.message.data)
    except bodies.BodyError as error:
        raise PermanentError(error.reason, str(error)) from error


def check_key(delivery: Delivery, kind: MessageType) -> None:
    """Raise PermanentError where the body is a JSON object that names another routing key than the message."""
    data = delivery.message.data
    try:
        body = bodies.read(data)
    except bodies.BodyError:
        return  # not a row; the sink decides what it is
    try:
        bodies.check_key(kind, body, data, delivery.partition_key)
    except bodies.BodyError as error:
        raise PermanentError(error.reason, str(error)) from error

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson
from sqlalchemy import Connection

from consumer.delivery import Delivery
from consumer.errors import NeverError


class Sink(Protocol):
    """Takes the new messages of a batch, in order, inside the transaction that also records them in the inbox.

    Called from several threads at once, each with a transaction of its own and with slots that no other has. How to write one of
    your own: docs/sinks.md.
    """

    def check(self, delivery: Delivery) -> None:
        """Read the body before any transaction. Raises NeverError when the write can't ever succeed."""

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """Bring the writes about; the count of those that were stale.

        Raises DataFaultError when one of them can't be: which one, the caller finds by trying smaller shares. Raises AgainError
        when it may work later. Either way what was written by this call is rolled back.
        """


def json_object(delivery: Delivery) -> dict[str, Any]:
    """The body as a JSON object. Raises NeverError."""
    try:
        body = orjson.loads(delivery.message.data)
    except orjson.JSONDecodeError as error:
        raise NeverError("bad_json", str(error)) from error
    if not isinstance(body, dict):
        raise NeverError("bad_json", "the body must be a JSON object")
    return body

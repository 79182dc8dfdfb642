"""What an application, or a sink, calls in its own transaction: it stores the write, and a relay publishes it after the commit.

outbox = Outbox(load_fleet(Path("shards.yaml")))
with Session(engine) as session, session.begin():
    session.add(order)
    outbox.enqueue(session, Write("order", {"order_id": "o-1", "status": "paid"}))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from sqlalchemy import Connection, Engine, MetaData, insert

from shardctl.errors import UsageError
from shardctl.shard import outboxtables
from shardctl.wire.identity import new_key
from shardctl.wire.message import Routes, Write, encode

_INSERT = insert(outboxtables.outbox).inline()
_OPTION = "shardctl_outbox"  # of an engine whose transactions `emit` may write to


class Executor(Protocol):
    """A SQLAlchemy Session or Connection."""

    def execute(self, statement: Any, parameters: Any = None, /) -> Any: ...


class Outbox:
    """Stores writes from any thread. `fleet` says what a valid write is, and its slot.

    A write is checked and gets its idempotency key here, so publishing it twice has one effect, and what the fleet can't
    take is refused while the caller can still act on it.
    """

    metadata: ClassVar[MetaData] = outboxtables.metadata  # of its tables, for Alembic's `target_metadata`

    def __init__(
        self,
        fleet: Routes,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        stored: Callable[[], None] = lambda: None,
    ) -> None:
        """`stored` is called after each insert, before its commit."""
        self._fleet, self._now, self._stored = fleet, now, stored

    def enqueue(self, session: Executor, *writes: Write) -> tuple[str, ...]:
        """Store the writes, in order, in the transaction that is open; their idempotency keys.

        `session` is a SQLAlchemy Session or Connection. From an async one: `await session.run_sync(outbox.enqueue, write)`.
        A session is flushed first, so that the rows that the transaction changes are locked before the writes get their places:
        two transactions that change the same row enqueue in the order in which they commit. Raises InvalidWriteError.
        """
        if hasattr(session, "run_sync"):
            raise UsageError("enqueue takes no async session: call `await session.run_sync(outbox.enqueue, write)`.")
        if not hasattr(session, "execute"):
            raise UsageError(
                f"enqueue takes a Session or a Connection, in its transaction, not {type(session).__name__}."
            )
        rows = [self._row(write) for write in writes]
        if rows:
            if callable(flush := getattr(session, "flush", None)):
                flush()
            session.execute(_INSERT, [row for row, _ in rows])
            self._stored()
        return tuple(key for _, key in rows)

    def statement(self, write: Write) -> tuple[str, tuple[int, str, bytes]]:
        """The statement that stores a write and its parameters, for a cursor that marks them with `%s`, such as Django's."""
        row, _ = self._row(write)
        text = f"INSERT INTO {outboxtables.outbox.name} (slot, attributes, body) VALUES (%s, %s, %s)"  # noqa: S608 - no user's text
        return text, (row["slot"], row["attributes"], row["body"])

    def create(self, engine: Engine) -> None:
        """Make the tables in the application's database, where they are missing."""
        with engine.begin() as connection:
            outboxtables.create(connection)

    def serve_sinks(self, engine: Engine) -> None:
        """Let `emit` store writes in this engine's transactions."""
        engine.update_execution_options(**{_OPTION: self})

    def _row(self, write: Write) -> tuple[Mapping[str, Any], str]:
        key = new_key() if write.idempotency_key is None else write.idempotency_key
        encoded = encode(self._fleet, replace(write, idempotency_key=key), self._now())
        attributes = json.dumps(encoded.attributes, ensure_ascii=False, separators=(",", ":"))
        return {"slot": encoded.slot, "attributes": attributes, "body": encoded.data}, key


def emit(connection: Connection, *writes: Write) -> tuple[str, ...]:
    """In a sink's `apply`: store writes that follow from those that are applied; their idempotency keys.

    They leave after the transaction has committed, once, in the order of the calls for each slot. A redelivered message isn't
    applied again, so it emits nothing again. Raises InvalidWriteError, also for a type that isn't among the sink's `emits`.
    """
    outbox = connection.get_execution_options().get(_OPTION)
    if not isinstance(outbox, Outbox):
        raise UsageError(
            "no outbox for this connection: name the types that the sink emits under message_types.TYPE.emits. In a test, "
            "call `Outbox(fleet).serve_sinks(engine)` first."
        )
    return outbox.enqueue(connection, *writes)

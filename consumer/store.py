"""One batch, one transaction on the shard's database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from consumer import database
from consumer.delivery import Delivery
from consumer.errors import AgainError, DataFaultError, NeverError
from consumer.fence import Fence
from consumer.inbox import Inbox
from consumer.rows import Dialect
from consumer.sinks.base import Sink


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did. `poison` is not empty only when nothing was committed because of these messages."""

    applied: int = 0
    duplicates: int = 0
    dead: int = 0
    stale: int = 0
    not_owned: tuple[Delivery, ...] = ()
    poison: tuple[Delivery, ...] = ()


Apply = Callable[[Connection, Sequence[Delivery]], int]


class _PoisonFoundError(Exception):
    """Ends a transaction that must not commit."""


class Store:
    """Blocking: runs in a thread. Safe to call again with the same messages, whatever became of the call before."""

    def __init__(self, engine: Engine, dialect: Dialect, fence: Fence, sink: Sink) -> None:
        self._engine, self._dialect, self._fence, self._inbox, self._sink = engine, dialect, fence, Inbox(dialect), sink

    def apply(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Apply what is new, in order, and record it, in one transaction. Messages with a fault are recorded as dead.

        When the data of some message is refused, finds which by halving, commits nothing, and returns it as `poison` with its
        fault set. Raises AgainError when the database can't answer: then the whole may be tried again.
        """
        try:
            with database.transaction(self._engine, self._dialect) as connection:
                return self._write(connection, deliveries, self._sink.apply)
        except DataFaultError:
            return self._search(deliveries)

    def _search(self, deliveries: Sequence[Delivery]) -> Outcome:
        poison: list[Delivery] = []

        def apply_by_halves(connection: Connection, writes: Sequence[Delivery]) -> int:
            try:
                with database.translated(), connection.begin_nested():
                    stale = self._sink.apply(connection, writes)
                    if self._dialect.check_deferred:
                        connection.exec_driver_sql(self._dialect.check_deferred)
                    return stale
            except DataFaultError as fault:
                if len(writes) == 1:
                    writes[0].fault = NeverError(fault.reason, fault.detail)
                    poison.append(writes[0])
                    return 0
                middle = len(writes) // 2
                return apply_by_halves(connection, writes[:middle]) + apply_by_halves(connection, writes[middle:])

        try:
            with database.transaction(self._engine, self._dialect) as connection:
                outcome = self._write(connection, deliveries, apply_by_halves)
                _commit_only_without(poison)
                return outcome
        except _PoisonFoundError:
            return Outcome(poison=tuple(poison))
        except DataFaultError as fault:
            # Each write passes by itself and the whole doesn't. Keeping everything is all that is left.
            raise AgainError(f"database: no single message is to blame, yet: {fault}") from fault

    def _write(self, connection: Connection, deliveries: Sequence[Delivery], apply: Apply) -> Outcome:
        active = self._fence.share(connection)
        owned = [delivery for delivery in deliveries if delivery.slot in active]
        not_owned = tuple(delivery for delivery in deliveries if delivery.slot not in active)
        fresh = self._inbox.add(connection, owned) if owned else []
        writes = [delivery for delivery in fresh if delivery.fault is None]
        stale = apply(connection, writes) if writes else 0
        return Outcome(len(writes), len(owned) - len(fresh), len(fresh) - len(writes), stale, not_owned)


def _commit_only_without(poison: Sequence[Delivery]) -> None:
    if poison:
        raise _PoisonFoundError

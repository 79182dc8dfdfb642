"""The term: the number, in the shard's database, of the leadership that may write.

Invariant: while a shard has a leader, a write commits only in the term of the replica that led last. Each write transaction
shares the term's row until it commits, and ends where the row holds another number than its own. A new leader locks the row
exclusively, which waits for the transactions of the leader before, and raises the number. A replica may lose its lease without
noticing, because of a pause, a clock or a network. It can't lose its term that way.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, select, update

from consumer.database import sessions
from consumer.database.dialects import Dialect
from consumer.errors import TransientError
from shardctl.shard.schema import leader

_SHARE = select(leader.c.term, leader.c.holder).where(leader.c.id == 1).with_for_update(read=True)


class NotLeaderError(Exception):
    """Another replica leads. Nothing was written, nothing is lost; this replica must stand down."""

    def __init__(self, mine: int | None, term: int, holder: str) -> None:
        was = "doesn't lead" if mine is None else f"led in term {mine}"
        super().__init__(f"this replica {was}, and term {term} is {holder}'s")


class Term:
    """A replica's term while it leads. Blocking; any thread may call."""

    def __init__(self, engine: Engine, dialect: Dialect, holder: str) -> None:
        self._engine, self._dialect, self._holder = engine, dialect, holder
        self.number: int | None = None

    def begin(self) -> int:
        """Begin a new term, once no transaction of an earlier one is under way. Raises TransientError."""
        with sessions.transaction(self._engine, self._dialect) as connection:
            if connection.dialect.name == "postgresql":
                # A row's sharers may come and go for ever without a gap; a table's lock keeps a queue.
                connection.exec_driver_sql(f"LOCK TABLE {leader.name} IN EXCLUSIVE MODE")
            raised = update(leader).where(leader.c.id == 1).values(term=leader.c.term + 1, holder=self._holder[:255])
            if connection.execute(raised).rowcount == 0:
                raise TransientError(f"{leader.name} is empty: run `shardctl provision`")
            number = int(connection.scalar(select(leader.c.term).where(leader.c.id == 1)) or 0)
        self.number = number
        return number

    def end(self) -> None:
        """From here on nothing is written, until another term begins."""
        self.number = None

    def check(self, connection: Connection) -> None:
        """Share the term until the transaction ends. Raises NotLeaderError where it isn't this replica's, TransientError."""
        row = connection.execute(_SHARE).first()
        if row is None:
            raise TransientError(f"{leader.name} is empty: run `shardctl provision`")
        if self.number is None or row.term != self.number:
            raise NotLeaderError(self.number, row.term, row.holder)

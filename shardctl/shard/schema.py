"""The tables that shardctl keeps in each shard's database, beside the user's own.

Invariants kept here:
- a write commits only where its slot is `active` at the writer's generation: each write transaction shares the fence row, each
  ownership change takes it alone and raises its version;
- the inbox row of a message commits in the transaction of its effect, so an effect is there once or not at all.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy import types as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.columns import MAX_PRECISION, MAX_SCALE, ColumnType
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard import inbox_0_1, membership, outboxtables
from shardctl.shard.membership import Membership
from shardctl.wire import identity


class LaneState(StrEnum):
    """What a shard's database holds of a lane: of one slot in one generation. In the order in which a lane goes through them."""

    ARRIVING = "arriving"  # no barrier is out for the slot: an older lane, here or elsewhere, has all that is published
    DUE = "due"  # the barrier may be out
    ACTIVE = "active"
    LEFT = "left"


class RebalanceState(StrEnum):
    """How a rebalance stands in a database that takes part in it."""

    OPEN = "open"
    ABORTED = "aborted"
    DONE = "done"


KEY_LENGTH = (
    255  # the longest idempotency key, in characters; longer ones are refused by the publisher and the consumer
)
REASON_LENGTH = 64  # the longest word for why a write failed, in characters


class InboxOutcome(StrEnum):
    """What became of a message whose inbox row is there."""

    APPLIED = "applied"
    DEAD = "dead"  # on the dead-letter topic; not to be tried again unasked
    PARKED = "parked"  # waits in the parked table
    REPLAYED = "replayed"  # no message's row, but a letter's: see `shardctl.deadletter.inboxes`


OUTCOME_CODES = {InboxOutcome.DEAD: 1, InboxOutcome.PARKED: 2, InboxOutcome.REPLAYED: 3}
_OUTCOMES = {code: outcome for outcome, code in OUTCOME_CODES.items()}


class OutcomeCode(TypeDecorator[InboxOutcome]):
    """An outcome as its code; NULL is APPLIED, which nearly every row is, and takes no space.

    So compare with `.is_(None)` for APPLIED: SQL's `= NULL` is never true.
    """

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: InboxOutcome | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - as SQLAlchemy calls it
        return None if value is None else OUTCOME_CODES.get(InboxOutcome(value))

    def process_result_value(self, value: int | None, dialect: Dialect) -> InboxOutcome:  # noqa: ARG002 - as SQLAlchemy calls it
        return InboxOutcome.APPLIED if value is None else _OUTCOMES[value]


class IdentityBytes(TypeDecorator[bytes]):
    """The 16 bytes of an identity. PostgreSQL keeps them as a uuid, which has no length beside them."""

    impl = LargeBinary(identity.BYTES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.Uuid(as_uuid=False))
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.BINARY(identity.BYTES))
        return dialect.type_descriptor(LargeBinary(identity.BYTES))

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> Any:
        return value.hex() if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:  # noqa: ARG002 - as SQLAlchemy calls it
        return bytes.fromhex(value.replace("-", "")) if isinstance(value, str) else value


class KeyText(TypeDecorator[str]):
    """A key that equals no other: MySQL's collations would fold case, accents or blanks at the end, so it holds the bytes."""

    impl = String(KEY_LENGTH)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.VARBINARY(KEY_LENGTH * 4))
        return dialect.type_descriptor(String(KEY_LENGTH))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return value.encode() if value is not None and dialect.name in _MYSQL else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - as SQLAlchemy calls it
        return value.decode() if isinstance(value, bytes) else value


_MYSQL = ("mysql", "mariadb")
# Whatever the database's own defaults are.
_MYSQL_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value for name in _MYSQL for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}
_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
_MOMENT = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)

metadata = MetaData()
for _table in outboxtables.metadata.tables.values():
    _table.to_metadata(metadata)

# One row. Writers take it FOR SHARE; a transaction that changes slots takes it FOR UPDATE and adds one to its version.
fence = Table(
    "shardctl_fence",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("version", sa.BigInteger, nullable=False),
    CheckConstraint("id = 1", name="shardctl_fence_one_row"),
    **_MYSQL_OPTIONS,
)

# One row, used where one replica of a shard leads: see `consumer.store.term`. The term grows with each leadership.
leader = Table(
    "shardctl_leader",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("term", sa.BigInteger, nullable=False),
    Column("holder", String(255), nullable=False),
    CheckConstraint("id = 1", name="shardctl_leader_one_row"),
    **_MYSQL_OPTIONS,
)

# See `shardctl.shard.lanes`, which alone changes them.
lanes = Table(
    "shardctl_lanes",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    # When the barrier that the lane began or ended with was published: microseconds since 1970, as Pub/Sub reported it.
    Column("barrier_time_us", sa.BigInteger),
    # Names the lane's log of changes, at random or after its barrier; NULL while there is none. See `shardctl.shard.changes`.
    Column("log", String(32)),
    **_MYSQL_OPTIONS,
)

# What has changed in the slots of logged lanes, by key. See `shardctl.shard.changes`, which alone writes it. A position names one
# change for ever: the executor that has copied it deletes it by its position, perhaps long after, and must not meet another.
changes = Table(
    "shardctl_changes",
    metadata,
    Column("position", sa.BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("slot", Integer, nullable=False),
    Column("table_name", String(255), nullable=False),
    Column("key", _LONG_TEXT, nullable=False),  # a JSON array
    Index("shardctl_changes_of_slot", "slot", "position"),
    sqlite_autoincrement=True,  # else numbers are given out again once the table is empty
    **_MYSQL_OPTIONS,
)

# Slots whose rows are here, copied from a lane that was active then and is logged since, or left behind before that lane became
# active. See `shardctl.rebalance.bases`.
bases = Table(
    "shardctl_bases",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),  # of the lane that is to have it
    Column("source_shard", String(255), nullable=False),
    Column("source_generation", Integer, nullable=False),
    Column("log", String(32), nullable=False),  # of the source's lane
    Column("rows", sa.BigInteger, nullable=False),
    Column("made_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    **_MYSQL_OPTIONS,
)

# The barriers that the executor of a rebalance awaits in this database, each on the lane that it ends. A barrier that has no row
# here ends nothing, whatever it says. See `shardctl.shard.lanes`, which alone changes them.
barriers = Table(
    "shardctl_barriers",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("rebalance", String(64), nullable=False),
    Column("token", String(64), nullable=False),  # random; nobody knows it before the barrier is published
    **_MYSQL_OPTIONS,
)

# The rebalances that this database took part in; one at most is open. See `shardctl.rebalance.journal`.
rebalances = Table(
    "shardctl_rebalances",
    metadata,
    Column("id", String(64), primary_key=True),  # random, the same in every database that takes part
    Column("state", String(16), nullable=False),  # see RebalanceState
    Column("plan", _LONG_TEXT, nullable=False),  # JSON
    Column("opened_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("closed_time", DateTime(timezone=True)),
    **_MYSQL_OPTIONS,
)

# Who reads which generations of the shard; each consumer reports it periodically.
replicas = Table(
    "shardctl_replicas",
    metadata,
    Column("replica", String(255), primary_key=True),
    Column("generations", String(255), nullable=False),  # "1,2"
    Column("seen_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    **_MYSQL_OPTIONS,
)

# A row a write. On PostgreSQL its columns take 32 bytes and no padding, but for the reason of a dead write, and its keys are
# chosen for few bytes as well: see `_key_for_postgresql`. Elsewhere rows lie in the order of their key: those of a slot together,
# without a second index.
inbox = Table(
    "shardctl_inbox",
    metadata,
    Column("identity", IdentityBytes, nullable=False),  # of a write in its slot: see `shardctl.wire.identity`
    Column("slot", Integer, nullable=False, autoincrement=False),
    Column("key_hash", Integer, nullable=False),  # of message type and routing key
    Column("fingerprint", Integer),  # NULL in rows that 0.1.0 wrote: they equal every write of their identity
    Column("published", Integer, nullable=False),  # when the message was, in seconds since `PUBLISHED_FROM`; see there
    Column("outcome", OutcomeCode),
    Column(
        "reason", String(REASON_LENGTH)
    ),  # of a dead row, the word that its letter has; else NULL, which takes no space
    PrimaryKeyConstraint("slot", "identity"),
    **_MYSQL_OPTIONS,
)

# The moment from which `published` counts: PostgreSQL's own. 32 bits with a sign last until 2068.
PUBLISHED_FROM = 946_684_800  # seconds since 1970: 2000-01-01 UTC
LAST_PUBLISHED = (1 << 31) - 1


def published(moment_us: int) -> int:
    """A time in microseconds since 1970 as the inbox has it: whole seconds, rounded down."""
    second = moment_us // 1_000_000 - PUBLISHED_FROM
    if -LAST_PUBLISHED <= second <= LAST_PUBLISHED:
        return second
    return LAST_PUBLISHED if second > 0 else -LAST_PUBLISHED


def published_now(connection: Connection) -> int:
    """The present second, by the database's own clock."""
    moment: datetime = connection.execute(select(func.now())).scalar_one()
    utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # SQLite and MySQL keep UTC without saying so
    return published(int(utc.timestamp()) * 1_000_000)


_INBOX_INDEXES = {"shardctl_inbox_slot": "(slot)", "shardctl_inbox_published": "USING brin (published)"}


def _key_for_postgresql(connection: Connection, name: str) -> None:
    """The primary key, a B-tree of its own here, is of identities alone, and full pages are left full.

    Identities of time-ordered keys grow, so new rows fill the last page. With slots first they would go to the last page of each
    slot, which lies in the middle of the tree, where a page that is split stays half empty: 30 bytes a row more. An index of
    slots has few values, each once for many rows: 8 bytes a row. That of times has one entry for 128 pages: next to nothing.
    """
    connection.exec_driver_sql(
        f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey, "
        f"ADD CONSTRAINT {name}_pkey PRIMARY KEY (identity) WITH (fillfactor = 100)"
    )
    for index, columns in _INBOX_INDEXES.items():
        connection.exec_driver_sql(f"CREATE INDEX {index.replace(inbox.name, name)} ON {name} {columns}")


@event.listens_for(inbox, "after_create")
def _after_create(table: Table, connection: Connection, **_: Any) -> None:
    if connection.dialect.name == "postgresql":
        _key_for_postgresql(connection, table.name)


def inbox_called(name: str) -> Table:
    """A table in the form of the inbox, under another name."""
    table = inbox.to_metadata(MetaData(), name=name)
    event.listen(table, "after_create", _after_create)
    return table


# The reason of a key that waits for its type's table, and not for a person: consumers try it again by themselves.
TABLE_NOT_READY = "table_not_ready"

# A routing key whose order waits for a person, in one message type: who may write one type must not hold up another. Writers
# share its row; the command that releases it takes it alone.
parked_keys = Table(
    "shardctl_parked_keys",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("message_type", KeyText, primary_key=True),
    Column("partition_key", KeyText, primary_key=True),
    Column("reason", String(REASON_LENGTH), nullable=False),  # of its first message
    Column("detail", _LONG_TEXT, nullable=False),
    Column("released", Boolean, nullable=False, default=False),  # a consumer may apply its messages now
    Column("parked_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    **_MYSQL_OPTIONS,
)

# The messages of parked keys, the first one at fault and those that wait behind it, by position.
parked = Table(
    "shardctl_parked",
    metadata,
    Column("position", sa.BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("slot", Integer, nullable=False),
    Column("partition_key", KeyText, nullable=False),
    Column("message_type", KeyText, nullable=False),
    Column("operation", String(16), nullable=False),
    Column("idempotency_key", KeyText, nullable=False),
    Column("identity", IdentityBytes, nullable=False),  # of its row in the inbox
    Column("message_id", String(64), nullable=False),
    Column("publish_time_us", sa.BigInteger, nullable=False),
    Column("attributes", _LONG_TEXT, nullable=False),  # JSON
    Column("body", LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL), nullable=False),
    Index("shardctl_parked_by_key", "slot", "message_type", "partition_key", "position"),
    **_MYSQL_OPTIONS,
)

_UUID_OF_MYSQL = mysql.CHAR(36, charset="ascii", collation="ascii_bin")
_COLUMN_TYPES: dict[ColumnType, TypeEngine[Any]] = {
    "text": _LONG_TEXT,
    "integer": Integer(),
    "bigint": sa.BigInteger(),
    "number": sa.Double(),
    "decimal": Numeric().with_variant(mysql.DECIMAL(MAX_PRECISION, MAX_SCALE), *_MYSQL),  # the widest there is
    "boolean": Boolean(),
    "timestamp": _MOMENT,
    "date": sa.Date(),
    "uuid": String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql").with_variant(_UUID_OF_MYSQL, *_MYSQL),
    "bytes": LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL),
    "json": sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
}
# MySQL can't index a text without a length. This collation distinguishes all texts but those that differ in blanks at the end.
_KEY_TEXT = Text().with_variant(mysql.VARCHAR(KEY_LENGTH, charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL)


LANES_OF_0_1 = "shardctl_slots"  # what 0.1.0 called the lanes' table


def fault_of_version(connection: Connection, *, beside_old_inbox: bool = False) -> str | None:
    """Why this version can't work with the tables that are there, and what to do; None where it can.

    What 0.1.0 made is upgraded by `shardctl.shard.upgrade`. Consumers work `beside_old_inbox` meanwhile; for all others its rows
    must be where the rest is.
    """
    inspector = inspect(connection)
    if fault := _fault_of_inbox(inspector, beside_old_inbox=beside_old_inbox):
        return fault
    if not inspector.has_table(lanes.name) and inspector.has_table(LANES_OF_0_1):
        return (
            f"its table {LANES_OF_0_1} is of shardctl 0.1.0: run `shardctl provision`, which renames it to {lanes.name}"
        )
    if inspector.has_table(lanes.name) and lacks(connection, lanes.c.log):
        return f"its table {lanes.name} has no column {lanes.c.log.name}: run `shardctl provision`, which adds it"
    if lacking := outboxtables.lacking_columns(connection, metadata):
        return (
            f"there is no column {', '.join(lacking)}: its tables are of a version of shardctl that was never released, and "
            "can't be upgraded: make the database again, or go back to that version"
        )
    return None


def _fault_of_inbox(inspector: Inspector, *, beside_old_inbox: bool) -> str | None:
    if not inspector.has_table(inbox.name):
        return "there is no inbox, or it is being upgraded: run `shardctl provision`"
    columns = {column["name"] for column in inspector.get_columns(inbox.name)}
    if inbox_0_1.KEY in columns:
        return "its inbox is of shardctl 0.1.0: run `shardctl provision`, which upgrades it"
    if columns == {column.name for column in inbox.columns} - {inbox.c.reason.name}:
        return f"its table {inbox.name} has no column {inbox.c.reason.name}: run `shardctl provision`, which adds it"
    if not beside_old_inbox and inspector.has_table(inbox_0_1.NAME):
        return "rows of shardctl 0.1.0 are still on their way into its inbox: run `shardctl provision` and wait until it ends"
    return None


def lacks(connection: Connection, column: Column[Any]) -> bool:
    """Whether a table that is there was made before the column."""
    name = column.table.name
    return not any(present["name"] == column.name for present in inspect(connection).get_columns(name))


def missing_tables(connection: Connection) -> tuple[str, ...]:
    """The tables of shardctl's that an older version didn't make. `shardctl provision` makes them."""
    present = set(inspect(connection).get_table_names())
    return tuple(name for name in metadata.tables if name not in present)


def _varchar(length: int, *, exact: bool) -> TypeEngine[Any]:
    collation = "utf8mb4_bin" if exact else None
    return String(length).with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation=collation), *_MYSQL)


def _column_type(kind: MessageType, column: str) -> TypeEngine[Any]:
    if column in kind.precisions:
        return Numeric(*kind.precisions[column])
    if column in kind.lengths:
        return _varchar(kind.lengths[column], exact=column in kind.key)
    column_type = kind.types[column]
    return _KEY_TEXT if column_type == "text" and column in kind.key else _COLUMN_TYPES[column_type]


def table_of(kind: MessageType, into: MetaData) -> Table:
    """The mapped table of a message type, as `shardctl provision` creates it where it doesn't exist."""
    schema, _, name = kind.table.rpartition(".")
    if (table := into.tables.get(kind.table)) is not None:
        return table
    columns: list[Column[Any]] = [
        Column(
            column,
            _column_type(kind, column),
            primary_key=column in kind.key,
            autoincrement=False,  # keys come from the messages: see `shardctl.shard.keys`
        )
        for column in kind.columns
    ]
    columns.append(Column(kind.slot_column, Integer, nullable=False, index=True))
    return Table(name, into, *columns, schema=schema or None, **_MYSQL_OPTIONS)


def create(
    engine: Engine,
    kinds: dict[str, MessageType],
    owned: SlotSet,
    generation: int,
    whose: Membership | None = None,
    taken_from: Membership | None = None,
) -> None:
    """Create what is missing; a fresh database holds `owned` active. Safe to run again: what a database holds is left alone.

    With `whose`, the database belongs to that shard from the same commit on. Raises ForeignDatabaseError where it belongs to
    another than `taken_from`.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        metadata.create_all(connection)
        membership.create(connection)
        mapped = MetaData()
        for kind in kinds.values():
            if kind.table:
                table_of(kind, mapped)
        mapped.create_all(connection)
        outboxtables.fill(connection)
        if connection.scalar(select(leader.c.term)) is None:
            connection.execute(insert(leader).values(id=1, term=0, holder=""))
        if connection.scalar(select(fence.c.version)) is None:
            connection.execute(insert(fence).values(id=1, version=1))
            rows = [{"slot": slot, "generation": generation, "state": LaneState.ACTIVE} for slot in owned]
            if rows:
                connection.execute(insert(lanes), rows)
        if whose:
            membership.record(connection, whose, taken_from)

"""Rows of slots on their way from one database into another, a few at a time, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shardctl.rebalance.rows.keys import Keys
from shardctl.rebalance.rows.paired import Conversions, Paired
from shardctl.rebalance.rows.shape import SlotTable, quoted
from shardctl.rebalance.rows.values import MYSQL
from shardctl.shard import database

if TYPE_CHECKING:
    import psycopg

ROWS_AT_ONCE = 1_000
BYTES_AT_ONCE = 1 << 20
ROWS_FETCHED = 100  # a parked message may have ten megabytes

GoOn = Callable[[], None]  # raises to stop
Slots = tuple[int, ...]  # one or more
Row = list[Any]


@dataclass(frozen=True, slots=True)
class Digest:
    """What rows come to: the sum of a hash of each, so that their order doesn't matter where it has no meaning."""

    rows: int
    bytes: int  # or so; of the form in which they are hashed
    sum: int

    def __str__(self) -> str:
        return f"{self.sum:032x}"


class _Tally:
    __slots__ = ("_ordered", "_sum", "bytes", "rows")

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self.rows = self.bytes = self._sum = 0

    def add(self, row: Any) -> None:
        digest = blake2b(row, digest_size=16)
        if self._ordered:
            digest.update(b"%d" % self.rows)
        self._sum += int.from_bytes(digest.digest())
        self.rows += 1
        self.bytes += len(row)

    def digest(self) -> Digest:
        return Digest(self.rows, self.bytes, self._sum % (1 << 128))


def send(
    source: Connection,
    destination: Connection,
    pair: Paired,
    slots: Slots,
    go_on: GoOn,
    keys: Keys | None = None,
    known: Digest | None = None,
) -> Digest:
    """Read the rows of slots at the source, or those with some keys, and store them. What was read: of verbatim rows what is
    `known` of them, by `sums_there`.
    """
    if pair.verbatim:
        digest = known or _summed_up(source, pair, pair.source, slots, keys)
        if digest.rows:  # most slots have nothing parked
            _send_verbatim(source, destination, pair, slots, go_on, keys)
        return digest
    tally = _Tally(ordered=bool(pair.order))
    chunk: list[Row] = []
    begun_at = 0
    rows = _rows(source, f"{pair.read_source}{_selection(pair.source, slots, keys)}{pair.order}", pair.source, keys)
    with closing(rows), _storing(destination, pair) as store:
        for row in rows:
            tally.add(_comparable(row, pair.comparing))
            chunk.append(_converted(row, pair.writing))
            if len(chunk) >= ROWS_AT_ONCE or tally.bytes - begun_at >= BYTES_AT_ONCE:
                store(chunk)
                chunk, begun_at = [], tally.bytes
                go_on()
        if chunk:
            store(chunk)
    return tally.digest()


def read_back(destination: Connection, pair: Paired, slots: Slots, go_on: GoOn, keys: Keys | None = None) -> Digest:
    """What is stored of slots, or of those of their rows with some keys."""
    return _digest(destination, pair, pair.destination, pair.read_destination, slots, go_on, keys)


def read_there(source: Connection, pair: Paired, slots: Slots, go_on: GoOn, keys: Keys | None = None) -> Digest:
    """What the source has of them."""
    return _digest(source, pair, pair.source, pair.read_source, slots, go_on, keys)


def rows_there(source: Connection, pair: Paired, slots: Slots, keys: Keys) -> Generator[Row]:
    """The source's rows with these keys, in the form in which the destination takes them."""
    with closing(
        _rows(source, f"{pair.read_source}{_selection(pair.source, slots, keys)}{pair.order}", pair.source, keys)
    ) as rows:
        for row in rows:
            yield _converted(row, pair.writing)


def _digest(
    connection: Connection, pair: Paired, table: SlotTable, reading: str, slots: Slots, go_on: GoOn, keys: Keys | None
) -> Digest:
    if pair.verbatim:
        return _summed_up(connection, pair, table, slots, keys)
    tally = _Tally(ordered=bool(pair.order))
    with closing(_rows(connection, f"{reading}{_selection(table, slots, keys)}{pair.order}", table, keys)) as rows:
        for row in rows:
            tally.add(_comparable(row, pair.comparing))
            if tally.rows % ROWS_AT_ONCE == 0:
                go_on()
    return tally.digest()


def _selection(table: SlotTable, slots: Slots, keys: Keys | None) -> str:
    """What follows a table's slot column and `IN`."""
    listed = f"({', '.join(f'{slot:d}' for slot in slots)})"
    return listed if keys is None else f"{listed} AND {keys.condition(table)}"


# --- between two PostgreSQL databases -----------------------------------------------------------------------------------


def sums_there(source: Connection, pairs: Iterable[Paired], slots: Slots) -> dict[str, Digest]:
    """What the source has of each table whose rows are compared as PostgreSQL's text, in one statement: slots are closed for as
    long as it takes to ask.
    """
    return _all_summed_up(source, [(pair, pair.source) for pair in pairs if pair.verbatim], slots)


def sums_back(destination: Connection, pairs: Iterable[Paired], slots: Slots) -> dict[str, Digest]:
    """What is stored of them, likewise."""
    return _all_summed_up(destination, [(pair, pair.destination) for pair in pairs if pair.verbatim], slots)


def _all_summed_up(
    connection: Connection, sides: Sequence[tuple[Paired, SlotTable]], slots: Slots
) -> dict[str, Digest]:
    if not sides:
        return {}
    parts = (f"SELECT {place:d}, {_sums(pair, table, slots, None)}" for place, (pair, table) in enumerate(sides))
    rows = connection.exec_driver_sql(" UNION ALL ".join(parts))
    return {sides[place][0].name: _digest_of(*sums) for place, *sums in rows}


def begins_alike(source: Connection, destination: Connection, pair: Paired, slots: Slots, keys: Keys) -> int | None:
    """How many rows of one key the destination has, where the first and the last of them have the same places at the source.

    Messages are parked behind others, and go from the first on. Nobody changes them. So these rows are the first of the source's.
    """
    table = pair.destination
    query = f"SELECT count(*) FROM {table.sql} WHERE {table.slot_sql} IN {_selection(table, slots, keys)}"  # noqa: S608
    stored = int(destination.exec_driver_sql(query, keys.values(table)).scalar_one())
    for place in {0, stored - 1} if stored else ():
        part = f"{pair.order} OFFSET {place:d} LIMIT 1"
        there = _summed_up(source, pair, pair.source, slots, keys, part)
        if there.rows == 0 or there != _summed_up(destination, pair, table, slots, keys, part):
            return None
    return stored


def send_rest(
    source: Connection, destination: Connection, pair: Paired, slots: Slots, go_on: GoOn, keys: Keys, after: int
) -> None:
    """Store the source's rows of one key that follow the first `after`."""
    _send_verbatim(source, destination, pair, slots, go_on, keys, f" OFFSET {after:d}")


def rests(
    source: Connection, destination: Connection, pair: Paired, slots: Slots, keys: Keys, after: int
) -> tuple[Digest, Digest]:
    """What these rows come to at the source, and what is stored."""
    part = f"{pair.order} OFFSET {after:d}"
    there = _summed_up(source, pair, pair.source, slots, keys, part)
    return there, _summed_up(destination, pair, pair.destination, slots, keys, part)


def _send_verbatim(
    source: Connection,
    destination: Connection,
    pair: Paired,
    slots: Slots,
    go_on: GoOn,
    keys: Keys | None,
    part: str = "",
) -> None:
    # Closed before the source is rolled back, which would wait for this COPY for ever: it holds the session until it is closed.
    with (
        closing(_lines(source, pair, slots, keys, part)) as lines,
        _translated(destination),
        _cursor(destination) as cursor,
        cursor.copy(_copy_in(pair)) as sink,
    ):
        chunk = bytearray()
        for number, line in enumerate(lines, start=1):
            chunk += line
            if number % (ROWS_AT_ONCE // 2) == 0:  # `read_back` doesn't ask: the database reads
                go_on()
            if len(chunk) > 1 << 16:
                sink.write(chunk)
                chunk = bytearray()
        sink.write(chunk)


def _lines(connection: Connection, pair: Paired, slots: Slots, keys: Keys | None, part: str) -> Generator[Any]:
    """Each row of the source as PostgreSQL's COPY writes it: a line of text, one a message."""
    table, condition = pair.source, _selection(pair.source, slots, keys)
    query = f"SELECT {pair.columns_sql} FROM {table.sql} WHERE {table.slot_sql} IN {condition}{pair.order}{part}"  # noqa: S608
    copy, values = f"COPY ({query}) TO STDOUT", keys.values(table) if keys else None
    copy = copy if values else _undoubled(copy)
    with _translated(connection), _cursor(connection) as cursor, cursor.copy(copy, values) as lines:
        yield from lines


def _summed_up(
    connection: Connection, pair: Paired, table: SlotTable, slots: Slots, keys: Keys | None, part: str = ""
) -> Digest:
    """What rows come to, by the database itself: no row travels for it. Rows in an order have places among those of their key.

    `hashtextextended` is the function of hash partitions, so every version of PostgreSQL computes the same.
    """
    values = keys.values(table) if keys else None
    sums = connection.exec_driver_sql(f"SELECT {_sums(pair, table, slots, keys, part)}", values)
    return _digest_of(*sums.one())


def _sums(pair: Paired, table: SlotTable, slots: Slots, keys: Keys | None, part: str = "") -> str:
    names = ", ".join(quoted("postgresql", name) for name in table.named.key)
    place = f", row_number() OVER (PARTITION BY {names}{pair.order}) AS place" if pair.order else ""
    hashed = "concat(place, ' ', line)" if pair.order else "line"
    rows = f"SELECT * FROM {table.sql} WHERE {table.slot_sql} IN {_selection(table, slots, keys)}{part}"  # noqa: S608
    # The OFFSET keeps PostgreSQL from putting the expression in place of each `line`: it would make every row's text twice. As a
    # literal of no type, it leaves parallel plans open; a number would not.
    return (
        f'count(*), sum(octet_length(line)), sum(hashtextextended({hashed} COLLATE "C", 0)) '  # noqa: S608
        f"FROM (SELECT CAST(ROW({pair.columns_sql}) AS text) AS line{place} FROM ({rows}) AS chosen OFFSET '0') AS listed"
    )


def _digest_of(rows: int, size: int | None, total: int | None) -> Digest:
    return Digest(rows, int(size or 0), int(total or 0) % (1 << 128))


# --- between any two ----------------------------------------------------------------------------------------------------


def _rows(connection: Connection, query: str, table: SlotTable, keys: Keys | None) -> Generator[Any]:
    """Rows as the server hands them out, never all at once."""
    streaming = {"stream_results": True, "max_row_buffer": ROWS_FETCHED}
    values = keys.values(table) if keys else None
    with connection.exec_driver_sql(query, values, execution_options=streaming) as result:
        while rows := result.fetchmany(ROWS_FETCHED):
            yield from rows


def _comparable(row: Iterable[Any], conversions: Conversions) -> bytes:
    return repr(_converted(row, conversions)).encode()


def _converted(row: Iterable[Any], conversions: Conversions) -> Row:
    values = list(row)
    for place, convert in conversions:
        if values[place] is not None:
            values[place] = convert(values[place])
    return values


@contextmanager
def _storing(connection: Connection, pair: Paired) -> Iterator[Callable[[list[Row]], None]]:
    if connection.dialect.name == "postgresql":
        with _translated(connection), _cursor(connection) as cursor, cursor.copy(_copy_in(pair)) as sink:

            def copy(rows: list[Row]) -> None:
                for row in rows:
                    sink.write_row(row)

            yield copy
        return
    mark = "%s" if connection.dialect.name in MYSQL else "?"
    marks = ", ".join(mark for _ in pair.source.columns)
    statement = f"INSERT INTO {pair.destination.sql} ({pair.columns_sql}) VALUES ({marks})"  # noqa: S608
    yield lambda rows: _insert(connection, statement, rows)


def _insert(connection: Connection, statement: str, rows: list[Row]) -> None:
    connection.exec_driver_sql(statement, [tuple(row) for row in rows])


def _copy_in(pair: Paired) -> str:
    return f"COPY {_undoubled(pair.destination.sql)} ({_undoubled(pair.columns_sql)}) FROM STDIN"


def _undoubled(sql: str) -> str:
    """Names are quoted for statements that go through SQLAlchemy, where a % stands twice. COPY goes by it."""
    return sql.replace("%%", "%")


def _cursor(connection: Connection) -> psycopg.Cursor[Any]:
    driver: Any = connection.connection.driver_connection
    cursor: psycopg.Cursor[Any] = driver.cursor()
    return cursor


@contextmanager
def _translated(connection: Connection) -> Iterator[None]:
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        translated = DBAPIError.instance(
            "COPY", None, error, psycopg.Error
        )  # of the class that SQLAlchemy would give it
        raise database.error_of(connection.engine, error) from translated

"""What has happened to a key since its letter was written, as the inbox records. Only reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, cast, func, select
from sqlalchemy.dialects import mysql

from shardctl.deadletter.letter import Letter
from shardctl.fleet.spec import Fleet
from shardctl.shard.schema import InboxOutcome, inbox
from shardctl.wire import identity

KEYS_AT_ONCE = 500
LATER_ROWS_LOOKED_AT = 1_000


def slot_of(letter: Letter) -> int:
    if letter.place is None:
        raise ValueError(f"letter {letter.id} belongs nowhere")
    return letter.place.slot


def by_slot(letters: Iterable[Letter]) -> Iterator[tuple[int, list[Letter]]]:
    found: dict[int, list[Letter]] = defaultdict(list)
    for letter in letters:
        found[slot_of(letter)].append(letter)
    for slot, some in found.items():
        for start in range(0, len(some), KEYS_AT_ONCE):
            yield slot, some[start : start + KEYS_AT_ONCE]


def overtaken(connection: Connection, fleet: Fleet, letters: Sequence[Letter]) -> list[Letter]:
    """Those that would undo what a later write of the same key has put into the same table."""
    found = []
    for slot, some in by_slot([letter for letter in letters if _overwrites(fleet, letter)]):
        newest = _newest(connection, slot, {letter.key for letter in some})
        suspects = [letter for letter in some if _newest_of(fleet, newest, letter) > letter.written_us]
        replayed = _replayed(connection, slot, {letter.key for letter in suspects})
        found += [
            letter
            for letter in suspects
            if letter.key not in replayed
            or _newest_of(fleet, _later(connection, slot, letter, replayed[letter.key]), letter) > letter.written_us
        ]
    return found


def _overwrites(fleet: Fleet, letter: Letter) -> bool:
    """An insert meets the row that is there, and a version column distinguishes old from new."""
    kind = fleet.message_types[letter.type]
    return not (kind.version_column or (kind.table and letter.operation == "insert"))


def _newest_of(fleet: Fleet, newest: Mapping[tuple[str, str], int], letter: Letter) -> int:
    """Over the types that land where this one does."""
    table = fleet.message_types[letter.type].table
    rivals = {name for name, kind in fleet.message_types.items() if table and kind.table == table}
    return max((newest.get((letter.key, name), 0) for name in {letter.type, *rivals}), default=0)


def maybe_applied(connection: Connection, letters: Sequence[Letter]) -> list[Letter]:
    """Of letters whose identity in the inbox nobody knows, those that are probably recorded there.

    They were recorded under their message's id, which the copy that Pub/Sub made doesn't tell.
    """
    found = []
    for letter in letters:
        first = _moment(letter.written_us)
        query = select(inbox.c.identity, inbox.c.message_id).where(
            inbox.c.slot == slot_of(letter),
            inbox.c.partition_key == letter.key,
            inbox.c.message_type == letter.type,
            inbox.c.publish_time.between(first, first + timedelta(microseconds=letter.precision_us - 1)),
        )
        if any(row.identity == identity.of_message(row.message_id) for row in connection.execute(query)):
            found.append(letter)
    return found


def _newest(connection: Connection, slot: int, keys: Iterable[str]) -> dict[tuple[str, str], int]:
    """When the newest applied write of each routing key and type was published."""
    key, kind = _exactly(connection, inbox.c.partition_key), _exactly(connection, inbox.c.message_type)
    query = (
        select(key.label("its_key"), kind.label("its_type"), func.max(inbox.c.publish_time).label("newest"))
        .where(_applied(slot), inbox.c.partition_key.in_(sorted(keys)))
        .group_by(key, kind)
    )
    return {(_text(row.its_key), _text(row.its_type)): _us(row.newest) for row in connection.execute(query)}


def _replayed(connection: Connection, slot: int, keys: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of each routing key the writes that were replayed, and when they were written: their inbox rows have the replay's time."""
    query = select(inbox.c.partition_key, inbox.c.message_id, inbox.c.publish_time).where(
        inbox.c.slot == slot, inbox.c.outcome == InboxOutcome.REPLAYED, inbox.c.partition_key.in_(sorted(keys))
    )
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(query):
        found[row.partition_key][row.message_id] = _us(row.publish_time)
    return dict(found)


def _later(
    connection: Connection, slot: int, letter: Letter, replayed: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    """As `_newest`, of one letter's key, with replayed writes at the time when they were written."""
    query = (
        select(inbox.c.identity, inbox.c.partition_key, inbox.c.message_type, inbox.c.publish_time)
        .where(
            _applied(slot),
            inbox.c.partition_key == letter.key,
            inbox.c.publish_time > _moment(letter.written_us),
        )
        .order_by(inbox.c.publish_time.desc())
        .limit(LATER_ROWS_LOOKED_AT)
    )
    found: dict[tuple[str, str], int] = {}
    for row in connection.execute(query):
        written = replayed.get(row.identity.hex(), _us(row.publish_time))
        found[row.partition_key, row.message_type] = max(written, found.get((row.partition_key, row.message_type), 0))
    return found


def _exactly(connection: Connection, text: ColumnElement[str]) -> ColumnElement[Any]:
    """MySQL would group keys that differ in case, accents or blanks at the end."""
    return cast(text, mysql.BINARY) if connection.dialect.name in ("mysql", "mariadb") else text


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _applied(slot: int) -> ColumnElement[bool]:
    return and_(inbox.c.slot == slot, inbox.c.outcome == InboxOutcome.APPLIED)


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)


def _us(moment: datetime) -> int:
    """SQLite and MySQL keep UTC without saying so."""
    utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(utc.timestamp()) * 1_000_000 + utc.microsecond

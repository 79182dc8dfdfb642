"""What has happened to a key since its letter was written, as the inbox records. Only reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from shardctl.deadletter.letter import Letter
from shardctl.fleet.spec import Fleet
from shardctl.shard.schema import LAST_PUBLISHED, PUBLISHED_FROM, InboxOutcome, inbox, published
from shardctl.wire import identity

KEYS_AT_ONCE = 500
LATER_ROWS_LOOKED_AT = 1_000


def slot_of(letter: Letter) -> int:
    if letter.place is None:
        raise ValueError(f"letter {letter.id} belongs nowhere")
    return letter.place.slot


def by_slot(letters: Iterable[Letter]) -> Iterator[tuple[int, list[Letter]]]:
    letters_by_slot: dict[int, list[Letter]] = defaultdict(list)
    for letter in letters:
        letters_by_slot[slot_of(letter)].append(letter)
    for slot, some in letters_by_slot.items():
        for start in range(0, len(some), KEYS_AT_ONCE):
            yield slot, some[start : start + KEYS_AT_ONCE]


def overtaken(connection: Connection, fleet: Fleet, letters: Sequence[Letter]) -> list[Letter]:
    """Those that would undo what a later write of the same key has put into the same table.

    The inbox keeps the second in which a write was published. So one of the letter's own second may be the later one, and counts.
    """
    overtaken_letters = []
    for slot, letters_of_slot in by_slot([letter for letter in letters if _overwrites(fleet, letter)]):
        hashes = {letter.identity: _rivals(fleet, letter) for letter in letters_of_slot}
        newest = _newest(connection, slot, set().union(*hashes.values()))
        suspects = [
            letter
            for letter in letters_of_slot
            if any(
                newest.get(key_hash, -LAST_PUBLISHED) >= published(letter.written_us)
                for key_hash in hashes[letter.identity]
            )
        ]
        replayed = _replayed(connection, slot) if suspects else {}
        overtaken_letters += [
            letter for letter in suspects if _has_later(connection, slot, letter, hashes[letter.identity], replayed)
        ]
    return overtaken_letters


def _overwrites(fleet: Fleet, letter: Letter) -> bool:
    """An insert meets the row that is there, and a version column distinguishes old from new."""
    kind = fleet.message_types[letter.type]
    return not (kind.version_column or (kind.table and letter.operation == "insert"))


def _rivals(fleet: Fleet, letter: Letter) -> set[int]:
    """The hashes of the letter's key in each type that lands where this one does."""
    table = fleet.message_types[letter.type].table
    rivals = {name for name, kind in fleet.message_types.items() if table and kind.table == table}
    return {identity.key_hash(name, letter.key) for name in {letter.type, *rivals}}


def maybe_applied(connection: Connection, letters: Sequence[Letter]) -> list[Letter]:
    """Of letters whose identity in the inbox nobody knows, those that are probably recorded there.

    They were recorded under the id of their message, which the copy by Pub/Sub lacks. So a row of the same key that says
    the same and was published then, or later, counts; of rows without a fingerprint, those of just that time.
    """
    applied = []
    for letter in letters:
        first, last = published(letter.written_us), published(letter.written_us + letter.precision_us - 1)
        says_the_same = and_(inbox.c.fingerprint == letter.fingerprint, inbox.c.published >= first)
        may_say_the_same = and_(inbox.c.fingerprint.is_(None), inbox.c.published.between(first, last))
        query = select(inbox.c.slot).where(
            inbox.c.slot == slot_of(letter),
            inbox.c.key_hash == identity.key_hash(letter.type, letter.key),
            or_(says_the_same, may_say_the_same),
        )
        if connection.scalar(query.limit(1)) is not None:
            applied.append(letter)
    return applied


def _newest(connection: Connection, slot: int, hashes: Iterable[int]) -> dict[int, int]:
    """When the newest applied write of each key and type was published, by their hash."""
    query = (
        select(inbox.c.key_hash, func.max(inbox.c.published))
        .where(_applied(slot), inbox.c.key_hash.in_(sorted(hashes)))
        .group_by(inbox.c.key_hash)
    )
    return dict(map(tuple, connection.execute(query)))


def _replayed(connection: Connection, slot: int) -> dict[int, int]:
    """The writes of a slot that were replayed, by the tail of their identity, and when they were written, in microseconds.

    Their own rows have the time of the replay.
    """
    query = select(inbox.c.key_hash, inbox.c.published, inbox.c.fingerprint).where(
        inbox.c.slot == slot, inbox.c.outcome == InboxOutcome.REPLAYED, inbox.c.fingerprint.is_not(None)
    )
    return {
        its_tail: (seconds + PUBLISHED_FROM) * 1_000_000 + microseconds
        for its_tail, seconds, microseconds in connection.execute(query)
    }


def note(letter: Letter, its_identity: bytes) -> dict[str, Any]:
    """The row that notes a replay: which write it is of, by the tail of its identity, and when that was written."""
    return {
        "slot": slot_of(letter),
        "identity": its_identity,
        "key_hash": identity.tail(letter.write_identity),
        "fingerprint": letter.written_us % 1_000_000,
        "published": published(letter.written_us),
        "outcome": InboxOutcome.REPLAYED,
    }


def _has_later(
    connection: Connection, slot: int, letter: Letter, hashes: Collection[int], replayed: Mapping[int, int]
) -> bool:
    """Whether a write that took effect is later than the letter's. A replayed one counts from when it was written."""
    query = (
        select(inbox.c.identity)
        .where(_applied(slot), inbox.c.key_hash.in_(sorted(hashes)), inbox.c.published >= published(letter.written_us))
        .order_by(inbox.c.published.desc())
        .limit(LATER_ROWS_LOOKED_AT)
    )
    rows = connection.scalars(query).all()
    written = [replayed.get(identity.tail(its_identity)) for its_identity in rows]
    return len(rows) == LATER_ROWS_LOOKED_AT or any(
        written_us is None or written_us > letter.written_us for written_us in written
    )


def _applied(slot: int) -> ColumnElement[bool]:
    return and_(inbox.c.slot == slot, inbox.c.outcome.is_(None))

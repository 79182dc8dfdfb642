"""What the shards' databases remember of a write, and how a dead one is released for a replay.

A dead letter left an inbox row with outcome `dead`, by which a consumer takes any later copy for a duplicate. So a replay deletes
that row first, in a transaction that shares the fence, in the one database where the slot is active; and only a row that is dead.
A row that says `applied` stays for ever: whatever is replayed, the effect is there once.

In the same transaction a note is left under the letter's own id (outcome `replayed`). It parts two writes that have no row and
look alike: one that an earlier run has released, which may be published again; and one whose consumer has published the letter
and not yet recorded it, whose late `dead` would swallow the copy. The second is left alone until its row is there.

Why no write is lost: a consumer inserts `dead` only after it has published a letter of its own for it, and a letter is taken off
only when the write was applied, or after a copy was published behind the deletion of a `dead` row. If another `dead` comes after
that deletion, the letter of the write that inserted it is still there.

A row counts for a letter only where it has the fingerprint and the key of the letter's write, or no fingerprint, as rows of 0.1.0
have. So a letter that uses another write's idempotency key neither releases that write's row nor passes for applied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from shardctl.deadletter import later
from shardctl.deadletter.later import by_slot, slot_of
from shardctl.deadletter.letter import Letter, Origin, note_of
from shardctl.deadletter.place import KEY_REUSED
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.shard import changes, database
from shardctl.shard.database import DatabaseError
from shardctl.shard.lanes import share_fence
from shardctl.shard.membership import Membership
from shardctl.shard.schema import InboxOutcome, LaneState, fault_of_version, inbox, lanes
from shardctl.wire import deadletters, identity

LETTERS_AT_ONCE = 2_000  # a transaction
CLOCK_SLACK = timedelta(hours=1)  # between this machine's clock and a database's
TRIES = 4
TRY_AGAIN_SECONDS = 0.2

REPLAY, APPLIED = "replay", "applied"

Identity = tuple[str, str]
Session = Callable[[Engine], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class _Row:
    """An inbox row: what became of the write, and what it said where that is known."""

    outcome: InboxOutcome
    key_hash: int
    fingerprint: int | None

    def is_of(self, letter: Letter) -> bool:
        if self.fingerprint is None:
            return True
        return (self.fingerprint, self.key_hash) == (letter.fingerprint, identity.key_hash(letter.type, letter.key))


Known = dict[tuple[int, bytes], _Row]  # by slot and identity


@dataclass(frozen=True, slots=True)
class Verdict:
    """`replay`, `applied`, or a word for why not, and the same for a person. Some pass by themselves: trying later helps."""

    code: str
    why: str = ""
    passes: bool = False


GO = Verdict(REPLAY)
DONE = Verdict(APPLIED, "it had taken effect already")
REUSED = Verdict(deadletters.KEY_REUSED, KEY_REUSED)
Work = Callable[[Connection, str, Sequence[Letter]], dict[Identity, Verdict]]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a person takes upon themselves: letters no inbox knows, those older than it remembers, and writes that newer ones have
    overtaken.
    """

    unrecorded: bool = False
    unremembered: bool = False
    overtaken: bool = False


class Inboxes:
    """By shard. Without a database for a shard its letters pass unasked: see `lacking`."""

    def __init__(
        self,
        fleet: Fleet,
        urls: Mapping[str, str],
        allowed: Allowed,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fleet, self._allowed, self._now, self._sleep = fleet, allowed, now, sleep
        self._engines = {name: database.connect(url, whose=Membership(fleet.fleet, name)) for name, url in urls.items()}
        self._waiting: set[tuple[int, str]] = set()  # keys of which an earlier letter can't go yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for engine in self._engines.values():
            engine.dispose()

    def lacking(self, letters: Iterable[Letter]) -> tuple[str, ...]:
        """The shards that would have to be asked about these letters, and whose databases aren't known."""
        wanted = {name for letter in letters if letter.place for name in letter.place.shards}
        return tuple(shard.name for shard in self._fleet.shards if shard.name in wanted - self._engines.keys())

    def survey(self, letters: Sequence[Letter]) -> list[Verdict]:
        """What would become of each letter, in the order given. Only reads. Raises DatabaseError."""
        verdicts: list[Verdict] = []
        for start in range(0, len(letters), LETTERS_AT_ONCE):
            verdicts += self._over(letters[start : start + LETTERS_AT_ONCE], database.snapshot, self._look)
        return verdicts

    def let_go(self, letters: Sequence[Letter], unsure: Collection[Identity] = ()) -> list[Verdict]:
        """Delete the `dead` rows of letters that may be replayed, and note these. Safe to run again. Raises DatabaseError.

        Letters come in their order: behind one that can't go yet, none of its key goes. `unsure` are those that `survey` couldn't
        compare with later writes.
        """
        verdicts = self._over(letters, database.writing, partial(self._release, unsure=unsure))
        self._waiting.update(
            (slot_of(letter), letter.key) for letter, verdict in zip(letters, verdicts, strict=True) if verdict.passes
        )
        return verdicts

    def _over(
        self,
        letters: Sequence[Letter],
        session: Session,
        work: Work,
    ) -> list[Verdict]:
        """Ask for each letter the database in which its slot is active."""
        verdicts_by_number: dict[int, Verdict] = {}
        for name, engine in self._engines.items():
            asked = [
                n
                for n, letter in enumerate(letters)
                if n not in verdicts_by_number and letter.place and name in letter.place.shards
            ]
            if asked:
                its_letters = [letters[number] for number in asked]
                verdicts = self._again(partial(_in_one, engine, name, its_letters, session, work))
                verdicts_by_number |= {
                    n: verdicts[letters[n].identity] for n in asked if letters[n].identity in verdicts
                }
        return [verdicts_by_number.get(number) or self._unasked(letter) for number, letter in enumerate(letters)]

    def _again(self, call: Callable[[], dict[Identity, Verdict]]) -> dict[Identity, Verdict]:
        """Two desks that meet in one row, or a consumer and a desk: the second one tries again."""
        for _ in range(TRIES - 1):
            try:
                return call()
            except DatabaseError as error:
                if not isinstance(error.__cause__, IntegrityError | OperationalError):
                    raise
                self._sleep(TRY_AGAIN_SECONDS)
        return call()

    def _unasked(self, letter: Letter) -> Verdict:
        if letter.place is None:
            unfit = letter.unfit
            return Verdict(unfit.code, unfit.why) if unfit else Verdict("unfit")
        if all(name in self._engines for name in letter.place.shards):
            return Verdict(
                "moving", f"slot {letter.place.slot} is on its way to another shard: run it again", passes=True
            )
        return self._forgotten(letter, letter.place.shards[0]) or GO

    def _look(self, connection: Connection, shard: str, letters: Sequence[Letter]) -> dict[Identity, Verdict]:
        known = _rows(connection, letters)
        verdicts = {letter.identity: self._verdict(letter, shard, known) for letter in letters}
        going = [letter for letter in letters if verdicts[letter.identity] is GO]
        return verdicts | self._objections(connection, going)

    def _objections(self, connection: Connection, letters: Sequence[Letter]) -> dict[Identity, Verdict]:
        """Of letters whose own rows let them go, those that other rows speak against."""
        verdicts: dict[Identity, Verdict] = {}
        keyless = [] if self._allowed.unrecorded else [letter for letter in letters if not letter.has_own_key]
        for letter in later.maybe_applied(connection, keyless):
            verdicts[letter.identity] = Verdict(
                "maybe_applied",
                "it carries no idempotency key, and a write of its key and publish time is recorded: probably this one. Drop it; "
                "--unrecorded replays it all the same",
            )
        for letter in [] if self._allowed.overtaken else later.overtaken(connection, self._fleet, letters):
            verdicts[letter.identity] = Verdict(
                "overtaken",
                "a later write of its key took effect since, which it would overwrite. Drop it, or replay it with --overwrite",
            )
        return verdicts

    def _release(
        self, connection: Connection, shard: str, letters: Sequence[Letter], unsure: Collection[Identity]
    ) -> dict[Identity, Verdict]:
        known = _rows(connection, letters, alone=True)
        objections = self._objections(connection, [letter for letter in letters if letter.identity in unsure])
        verdicts: dict[Identity, Verdict] = {}
        dead, notes = [], []
        for letter in letters:
            verdict = self._verdict(letter, shard, known)
            if verdict is GO:
                verdict = objections.get(letter.identity, GO)
            key = slot_of(letter), letter.key
            if verdict is GO and key in self._waiting:
                verdict = Verdict("behind", "an earlier letter of its key can't be replayed yet", passes=True)
            if verdict.passes:
                self._waiting.add(key)
            verdicts[letter.identity] = verdict
            if verdict is not GO:
                continue
            row = (slot_of(letter), letter.write_identity)
            if row in known and known[row].outcome == InboxOutcome.DEAD:
                dead.append({"of_slot": row[0], "of_identity": row[1]})
                del known[row]  # a second letter of the same write finds nothing to release
            if (slot_of(letter), note_of(letter)) not in known:
                known[slot_of(letter), note_of(letter)] = _Row(InboxOutcome.REPLAYED, 0, 0)
                notes.append(later.note(letter, note_of(letter)))
        if dead:
            connection.execute(_DELETE_DEAD, dead)
        if notes:
            connection.execute(insert(inbox), notes)
        _log(connection, [letter for letter in letters if verdicts[letter.identity] is GO])
        return verdicts

    def _verdict(self, letter: Letter, shard: str, known: Known) -> Verdict:
        """By its inbox row, and where there is none, by why there is none."""
        slot = slot_of(letter)
        row = known.get((slot, letter.write_identity))
        if row and (why_not := _recorded(row, letter)):
            return why_not
        if row:
            return GO
        # Before the note: of a write that was replayed long ago, and took effect then, only the note may be left.
        if (forgotten := self._forgotten(letter, shard)) is not None:
            return forgotten
        if (slot, note_of(letter)) in known or self._allowed.unrecorded:
            return GO
        if letter.origin == Origin.CONSUMER and (letter.failed_slot, letter.shard) == (slot, shard):
            return Verdict(
                "unrecorded",
                f"shard {shard} hasn't recorded yet that it is dead: run it again in a minute. Where the database was restored "
                "from a backup, --unrecorded replays it",
                passes=True,
            )
        return GO

    def _forgotten(self, letter: Letter, shard: str) -> Verdict | None:
        """None where the inbox would remember the write; GO where it may be replayed although it doesn't.

        Its letter may be of a second copy, which its producer published up to a day after the one that took effect. That no
        consumer met the second is why it is a letter, and so why the inbox remembers the write from the first.
        """
        retention = topology.inbox_retention(self._fleet, self._fleet.shard(shard))
        kept = retention - topology.RETRIED_WITHIN - CLOCK_SLACK
        age = self._now() - datetime.fromtimestamp(letter.written_us / 1_000_000, UTC)
        if age < kept:
            return None
        if self._allowed.unremembered or self._is_harmless(letter):
            return GO
        return Verdict(
            "forgotten",
            f"it was written {age.days} days ago, and after {kept.days + 1} the inbox may have forgotten it: whether it took "
            "effect is unknown. --unremembered replays it",
        )

    def _is_harmless(self, letter: Letter) -> bool:
        """Whether the write changes nothing where it has taken effect already, whatever came after it.

        The row's version says so, while there is the row. An insert or upsert would bring back one that was deleted since.
        """
        kind = self._fleet.message_types[letter.type]
        return kind.version_column is not None and letter.operation in ("update", "delete")


def _log(connection: Connection, going: Sequence[Letter]) -> None:
    """The rows of letters that were released, and their notes, where their slots' changes are logged."""
    logged = changes.logged(connection, {slot_of(letter) for letter in going}) if going else ()
    changes.record(
        connection,
        [
            changes.of_inbox(slot_of(letter), row)
            for letter in going
            if slot_of(letter) in logged
            for row in (letter.write_identity, note_of(letter))
        ],
    )


def _recorded(row: _Row, letter: Letter) -> Verdict | None:
    """Why a letter whose identity is recorded isn't replayed. None where the row is that of a dead write, and this one's."""
    if not row.is_of(letter):
        return REUSED
    if row.outcome == InboxOutcome.APPLIED:
        return DONE
    if row.outcome == InboxOutcome.PARKED:
        return Verdict("parked", f"its key is parked: `shardctl parked show {letter.key}`")
    return None


def _in_one(
    engine: Engine, shard: str, letters: Sequence[Letter], session: Session, work: Work
) -> dict[Identity, Verdict]:
    wanted = sorted({slot_of(letter) for letter in letters})
    with session(engine) as connection:
        if fault := fault_of_version(connection):
            raise DatabaseError(f"shard {shard}: {fault}")
        if session is not database.snapshot:  # a view that only reads has no need
            share_fence(connection)  # so that no slot leaves meanwhile
        here = select(lanes.c.slot).where(lanes.c.state == LaneState.ACTIVE, lanes.c.slot.in_(wanted))
        active = set(connection.scalars(here))
        return work(connection, shard, [letter for letter in letters if slot_of(letter) in active])


_DELETE_DEAD = delete(inbox).where(
    inbox.c.slot == bindparam("of_slot"),
    inbox.c.identity == bindparam("of_identity"),
    inbox.c.outcome == InboxOutcome.DEAD,
)


def _rows(connection: Connection, letters: Sequence[Letter], *, alone: bool = False) -> Known:
    """The inbox rows of the letters' writes and of their notes. Taken `alone`, they can't change meanwhile."""
    known: Known = {}
    for slot, some in by_slot(letters):
        wanted = {row for letter in some for row in (letter.write_identity, note_of(letter))}
        query = select(inbox.c.identity, inbox.c.outcome, inbox.c.key_hash, inbox.c.fingerprint).where(
            inbox.c.slot == slot, inbox.c.identity.in_(sorted(wanted))
        )
        if alone:  # in one order for all, so that two desks wait instead of deadlocking
            query = query.order_by(inbox.c.identity).with_for_update()
        known |= {(slot, key): _Row(*says) for key, *says in connection.execute(query)}
    return known

"""Letters from where they lie, as a person chose them: off a desk's subscriptions, or out of an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from shardctl.deadletter import archive
from shardctl.deadletter.archive import LineError, Spool
from shardctl.deadletter.choice import Choice
from shardctl.deadletter.leasedreader import LeasedReader
from shardctl.deadletter.letter import Letter, Message, read
from shardctl.fleet.spec import Fleet

Fetch = Callable[["Found"], Message]


@dataclass(frozen=True, slots=True)
class Found:
    """A letter and where its message was put; nowhere, if nobody will ask for it."""

    letter: Letter
    at: tuple[int, int] | None = None


@dataclass(slots=True)
class Tally:
    """How many letters there are of each reason, type and shard."""

    letters: int = 0
    bytes: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    by_type: Counter[str] = field(default_factory=Counter)
    by_shard: Counter[str] = field(default_factory=Counter)

    def count(self, letter: Letter) -> None:
        self.letters += 1
        self.bytes += letter.size
        self.by_reason[letter.reason] += 1
        self.by_type[letter.type] += 1
        self.by_shard[letter.shard] += 1


def off_desk(
    fleet: Fleet, desk: LeasedReader, choice: Choice, *, strays: bool, looked_at: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Letter, str, Message]]:
    """The chosen letters with their subscription and message, as they come. `looked_at` hears how many came, chosen or not."""
    for name, messages in desk.read():
        looked_at(len(messages))
        for message in messages:
            letter = read(fleet, name, message, stray=strays)
            if choice.takes(letter):
                yield letter, name, message


def out_of_archive(
    fleet: Fleet,
    file: BinaryIO,
    choice: Choice,
    refuse: Callable[[int, str], None],
    looked_at: Callable[[int], None] = lambda _: None,
) -> Iterator[Found]:
    """The chosen letters, each once however often it is in the file. `refuse` hears of lines that hold none."""
    met: set[tuple[str, str]] = set()
    for number, at, line in archive.lines_of(file):
        looked_at(1)
        if line is None:
            refuse(number, f"over {archive.MAX_LINE_BYTES // 1024**2} MiB")
            continue
        try:
            name, message, stray = archive.decode(line)
        except LineError as error:
            refuse(number, str(error))
            continue
        letter = read(fleet, name, message, stray=stray)
        if letter.identity not in met and choice.takes(letter):
            met.add(letter.identity)
            yield Found(letter, at)


def spooled(
    letters: Iterator[tuple[Letter, str, Message]], spool: Spool, *, strays: bool, max_bytes: int
) -> Iterator[Found]:
    """Put the messages by. Ends early when so many bytes are put by."""
    for letter, name, message in letters:
        yield Found(letter, spool.add(archive.encode(name, message, stray=strays)))
        if spool.bytes >= max_bytes:
            return


def fetch_from(spool: Spool) -> Fetch:
    def fetch(item: Found) -> Message:
        if item.at is None:
            raise ValueError(f"the message of letter {item.letter.id} was not kept")
        return archive.decode(spool.fetch(item.at))[1]

    return fetch

"""`shardctl publish`: JSON lines into the fleet's topics."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from shardctl.cli import signals
from shardctl.cli.terminal import DEFAULT_FILE, NO_CREDENTIALS, FileOption, JsonOption, print_json, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError, UsageError

MAX_REFUSALS_SHOWN = 100


def publish(
    source: Annotated[str, typer.Argument(metavar="[FILE]", help="JSON lines; - is standard input.")] = "-",
    file: FileOption = DEFAULT_FILE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line; publish nothing.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Publish writes: one JSON object a line with "type", "body" and, if wanted, "key", "operation",
    "idempotency_key" and "timestamp". Invalid lines are reported and skipped.
    """
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    with _opened(source) as raw, _Stopping() as stopping:
        lines = _Lines(stopping.until_interrupted(raw))
        tally = _Tally()
        outcomes = _checked(fleet, lines) if dry_run else _published(fleet, lines, tally)
        try:
            with _progress(source) as advance, waiting(stopping.awaited) as moved:
                for number, refused in outcomes:
                    moved()
                    tally.count(number, refused)
                    advance(lines.bytes_read)
        except BaseException:
            if not dry_run:
                tally.say_what_is_unknown()
            raise
    what = "would be published" if dry_run else "published"
    say(f"{tally.taken:,} {what}, {tally.refused:,} refused{', interrupted' if stopping.stopped else ''}.")
    if as_json:
        print_json(
            {
                "published": 0 if dry_run else tally.taken,
                "valid": tally.taken,
                "refused": tally.refused,
                "refused_lines": tally.shown,
                "interrupted": stopping.stopped,
            }
        )
    if stopping.stopped:
        return EXIT_INTERRUPTED
    return EXIT_REFUSED if tally.refused else EXIT_DONE


class _Tally:
    def __init__(self) -> None:
        self.taken = self.refused = 0
        self.shown: list[dict[str, Any]] = []
        self.in_flight: deque[int] = deque()  # the lines whose outcome is awaited, in its order

    def count(self, number: int, refused: str | None) -> None:
        if refused is None:
            self.taken += 1
            return
        self.refused += 1
        if len(self.shown) < MAX_REFUSALS_SHOWN:
            self.shown.append({"line": number, "reason": refused})
            say(f"line {number}: {refused}")
        elif self.refused == MAX_REFUSALS_SHOWN + 1:
            say("… more lines are refused; they are only counted from here on.")

    def say_what_is_unknown(self) -> None:
        """Where the command ends before every line has its outcome."""
        if self.taken or self.refused or self.in_flight:
            say(f"{self.taken:,} published, {self.refused:,} refused.")
        if self.in_flight:
            say(
                f"No answer for {len(self.in_flight):,} of the lines from line {self.in_flight[0]} on: each may be published "
                "or not. Publish them again, with the idempotency keys that they had; without keys they may take effect twice."
            )


class _Lines:
    """Numbered lines; records how many bytes it has read."""

    def __init__(self, raw: Iterator[bytes]) -> None:
        self._raw = raw
        self.bytes_read = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(self._raw, 1):
            self.bytes_read += len(line)
            if line.strip():
                yield number, line


def _published(fleet: Any, lines: Iterable[tuple[int, bytes]], tally: _Tally) -> Iterator[tuple[int, str | None]]:
    """The number of each line that holds a write and why Pub/Sub refused it, if it did; `tally` counts the others.

    Keeps only writes in flight.
    """
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.publisher import Publisher, connect
    from shardctl.wire.jsonlines import LineError, write_of

    try:
        client = connect(endpoint=fleet.topic.endpoint)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error

    def writes() -> Iterator[Any]:
        for number, line in lines:
            try:
                write = write_of(line)
            except LineError as error:
                tally.count(number, str(error))
            else:
                tally.in_flight.append(number)
                yield write

    publisher, at_once = Publisher(fleet, client), False
    try:
        for outcome in publisher.publish_all(writes()):
            yield tally.in_flight.popleft(), outcome.refused
    except (KeyboardInterrupt, GeneratorExit):  # a second signal: to close the publisher is to wait for Pub/Sub
        at_once = True
        raise
    finally:
        if not at_once:
            publisher.close()


def _checked(fleet: Any, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str | None]]:
    from datetime import UTC, datetime

    from shardctl.wire.jsonlines import LineError, write_of
    from shardctl.wire.message import InvalidWriteError, encode

    now = datetime.now(UTC)
    for number, line in lines:
        try:
            encode(fleet, write_of(line), now)
        except (LineError, InvalidWriteError) as error:
            yield number, str(error)
        else:
            yield number, None


def _opened(source: str) -> AbstractContextManager[Any]:
    if source == "-":
        if sys.stdin.isatty():
            say("Reading JSON lines from the terminal; end with Ctrl-D.")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise UsageError(f"{source}: can't be read: {error.strerror}.") from error


class _Stopping:
    """A signal ends the reading, and lines that were read are still published; a second one ends the command at once."""

    def __init__(self) -> None:
        self.stopped = False
        self._reading = False
        self._handling = signals.handled_by(self._interrupt)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def _interrupt(self, *_: object) -> None:
        again, self.stopped = self.stopped, True
        if again or self._reading:
            raise KeyboardInterrupt

    def awaited(self) -> str:
        if self._reading:
            return "lines to read"
        emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
        again = " (a second Ctrl-C ends the command at once)" if self.stopped else ""
        return f"Pub/Sub{f' at {emulator}' if emulator else ''} to confirm the lines that were read{again}"

    def until_interrupted(self, raw: Any) -> Iterator[bytes]:
        """Lines, each cut one byte after the limit: longer lines are invalid, and must not fill the memory."""
        from shardctl.wire.jsonlines import MAX_LINE_BYTES

        while not self.stopped:
            self._reading = True
            try:
                line = raw.readline(MAX_LINE_BYTES + 1)
                rest = line
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = raw.readline(MAX_LINE_BYTES + 1)
            except KeyboardInterrupt:
                return
            except OSError as error:
                raise ShardctlError(f"reading failed: {error.strerror}. What was read is published.") from error
            finally:
                self._reading = False
            if not line:
                return
            yield line


@contextmanager
def _progress(source: str) -> Iterator[Any]:
    """A bar on a terminal, in bytes of the file; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    total = Path(source).stat().st_size if source != "-" else None
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("publish", total=total)
        yield lambda done: bar.update(task, completed=done)

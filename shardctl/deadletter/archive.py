"""Letters in a file of one's own: one JSON object a line, with all it takes to replay it.

A line is durable before its letter is taken off its subscription. A run that was killed may leave a letter in the file and on the
subscription, or in the file twice; a replay takes each once.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from shardctl.atomicfile import sync_folder
from shardctl.deadletter.letter import LAST_MOMENT_US, Message
from shardctl.errors import ShardctlError, UsageError

MAX_LINE_BYTES = 64 * 1024**2  # a body of 10 MB, each byte escaped
MAX_ID_CHARACTERS = 64


class ArchiveError(ShardctlError):
    """The file can't be written or read."""


class LineError(ValueError):
    """The line holds no letter: says what is wrong with it."""


def encode(subscription: str, message: Message, *, stray: bool) -> bytes:
    """A letter as one line. A body that isn't text comes in base64."""
    record: dict[str, Any] = {
        "kind": "stray" if stray else "dead_letter",
        "subscription": subscription,
        "message_id": message.id,
        "publish_time": _text(message.publish_time_us),
        "ordering_key": message.ordering_key,
        "attributes": dict(message.attributes),
    }
    try:
        record["body"] = message.data.decode()
    except UnicodeDecodeError:
        record["body_base64"] = base64.b64encode(message.data).decode()
    return orjson.dumps(record) + b"\n"


def decode(line: bytes) -> tuple[str, Message, bool]:
    """Subscription, message, and whether it is a stray. Raises LineError."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise LineError("not an object")
    kind, body = record.get("kind"), record.get("body")
    if kind not in ("stray", "dead_letter"):
        raise LineError('"kind" must be dead_letter or stray')
    for name in ("subscription", "message_id", "publish_time", "ordering_key"):
        if not isinstance(record.get(name), str):
            raise LineError(f'"{name}" must be text')
    if not 1 <= len(record["message_id"]) <= MAX_ID_CHARACTERS:
        raise LineError(f'"message_id" must have 1 to {MAX_ID_CHARACTERS} characters')
    attributes = record.get("attributes")
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise LineError('"attributes" must be an object of texts')
    if not isinstance(body, str) and not isinstance(record.get("body_base64"), str):
        raise LineError('"body" or "body_base64" must be text')
    try:
        data = body.encode() if isinstance(body, str) else base64.b64decode(record["body_base64"], validate=True)
    except ValueError as error:  # also characters beyond ASCII
        raise LineError(f'"body_base64" isn\'t base64: {error}') from error
    message = Message(record["message_id"], _us(record["publish_time"]), record["ordering_key"], attributes, data)
    return record["subscription"], message, kind == "stray"


def _text(moment_us: int) -> str:
    seconds, rest = divmod(moment_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def _us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment_us = int(moment.timestamp()) * 1_000_000 + moment.microsecond
    except (ValueError, OverflowError) as error:
        raise LineError(f'"publish_time" isn\'t an RFC 3339 time: {text[:40]!r}') from error
    if not 0 <= moment_us < LAST_MOMENT_US:
        raise LineError(f'"publish_time" is no time at which anything was published: {text[:40]!r}')
    return moment_us


class Archive:
    """A file that is only added to; for its owner's eyes, since bodies may be anybody's data."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                self._write(b"\n")  # a run was killed in the middle of a line, which stays one that can't be read
            sync_folder(path.parent)
        except OSError as error:
            raise ArchiveError(f"{path}: can't be written: {error.strerror}. Nothing was taken off.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def add(self, lines: Iterable[bytes]) -> None:
        """Durable on return. Raises ArchiveError."""
        try:
            for line in lines:
                self._write(line)
            os.fsync(self._file)
        except OSError as error:
            raise ArchiveError(
                f"{self._path}: can't be written: {error.strerror}. What isn't in it wasn't taken off."
            ) from error

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[os.write(self._file, left) :]


class Spool:
    """Lines on disk, fetched by where they lie: what is held for a replay must not fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def add(self, line: bytes) -> tuple[int, int]:
        """Where the line lies from now on. Raises ArchiveError."""
        try:
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
        except OSError as error:
            raise ArchiveError(
                f"no room in the temporary folder for the letters that are held: {error.strerror}. Nothing was taken off. Give "
                "TMPDIR another folder, or choose fewer letters."
            ) from error
        self.bytes += len(line)
        return at, len(line)

    def fetch(self, at: tuple[int, int]) -> bytes:
        self._file.seek(at[0])
        return self._file.read(at[1])


def lines_of(file: BinaryIO) -> Iterator[tuple[int, tuple[int, int], bytes | None]]:
    """Number, place and text of each line that isn't blank; None for the text of one that is too long to be a letter."""
    number = at = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        length, whole = len(line), line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
            length += len(rest)
        if line.strip():
            yield number, (at, length), line if whole else None
        at += length
        file.seek(at)  # the caller may have read elsewhere since it got the line


def opened(path: Path) -> BinaryIO:
    """Raises UsageError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}.") from error

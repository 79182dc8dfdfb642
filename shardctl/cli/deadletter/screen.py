"""Letters as text and as JSON."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from shardctl.cli.terminal import out, print_table, say
from shardctl.printable import printable_line

SHOWN_LEFT = 20
CELL_CHARACTERS = 40
WIDE_COLUMNS = 160
REPORT_AFTER_SECONDS = 5.0


def clean(text: str, longest: int = CELL_CHARACTERS) -> str:
    """One line, cut to `longest` characters, without control characters."""
    shown = printable_line(text[: longest + 1])
    return shown if len(text) <= longest and len(shown) <= longest else f"{shown[: longest - 1]}…"


def age(since_us: int) -> str:
    seconds = max(0, int(time.time() - since_us / 1_000_000))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def moment(us: int) -> str:
    return f"{datetime.fromtimestamp(us / 1_000_000, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def print_letters(letters: Sequence[Any], *, strays: bool) -> None:
    headers = [
        "message id",
        "dead-lettered",
        "reason",
        "belongs to" if strays else "shard",
        "type",
        "key",
        "bytes",
        "detail",
    ]
    rows = [
        [
            clean(letter.id),
            f"{age(letter.dead_lettered_us)} ago",
            clean(letter.reason),
            clean(letter.shard),
            clean(letter.type),
            clean(letter.key),
            f"{letter.size:,}",
            clean(letter.detail, 60),
        ]
        for letter in letters
    ]
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE_COLUMNS:  # ids must stay whole, to be copied
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    print_table(headers, rows, right=("dead-lettered", "bytes"))


def print_tally(tally: Any) -> None:
    """Three small tables in one."""
    rows = [
        (what, clean(name) or "(none)", f"{count:,}")
        for what, counts in (("reason", tally.by_reason), ("type", tally.by_type), ("shard", tally.by_shard))
        for name, count in counts.most_common()
    ]
    out()
    print_table(("by", "which", "letters"), rows, right=("letters",))


def letter_json(letter: Any) -> dict[str, Any]:
    """Without attributes and body."""
    return {
        "message_id": letter.id,
        "subscription": letter.subscription,
        "origin": letter.origin.value,
        "dead_lettered_time": moment(letter.dead_lettered_us),
        "written_time": moment(letter.written_us),
        "original_message_id": letter.original_id or None,
        "reason": letter.reason,
        "detail": letter.detail,
        "shard": letter.shard or None,
        "type": letter.type,
        "key": letter.key,
        "operation": letter.operation or None,
        "idempotency_key": letter.idempotency_key if letter.has_own_key else None,
        "slot": letter.place.slot if letter.place else None,
        "slot_attribute": letter.slot_text,
        "belongs_to": list(letter.place.shards) if letter.place else [],
        "unfit": {"code": letter.unfit.code, "why": letter.unfit.why} if letter.unfit else None,
        "bytes": letter.size,
    }


def tally_json(tally: Any) -> dict[str, Any]:
    return {
        "letters": tally.letters,
        "bytes": tally.bytes,
        "by_reason": dict(tally.by_reason.most_common()),
        "by_type": dict(tally.by_type.most_common()),
        "by_shard": dict(tally.by_shard.most_common()),
    }


def left_json(left: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {
            "message_id": letter.id, "type": letter.type, "key": letter.key, "shard": letter.shard or None,
            "code": verdict.code, "why": verdict.why,
        }
        for letter, verdict in left
    ]  # fmt: skip


def say_left(left: Sequence[Any]) -> None:
    """The letters that stay and why, at most the first ones."""
    for letter, verdict in left[:SHOWN_LEFT]:
        say(f"{clean(letter.id)}  {clean(letter.type)} {clean(letter.key)}: {verdict.code}: {clean(verdict.why, 400)}")
    if len(left) > SHOWN_LEFT:
        codes = Counter(verdict.code for _, verdict in left[SHOWN_LEFT:])
        say(f"… and {len(left) - SHOWN_LEFT:,} more: {', '.join(f'{n:,} {code}' for code, n in codes.most_common())}")


class Progress:
    """Progress: a bar on a terminal, elsewhere a line now and then. Without a total, a count."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total, self.done, self._reported_at = what, total, 0, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, letters: int) -> None:
        self.done += letters
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
        elif time.monotonic() - self._reported_at > REPORT_AFTER_SECONDS:
            self._reported_at = time.monotonic()
            say(f"{self._what}: {self.done:,}" + (f" of {self._total:,}" if self._total else ""))

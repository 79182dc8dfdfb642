"""The only module that prints: data goes to stdout, messages to stderr.

The text may come from a message, a file or a server, and a terminal obeys some characters. Each function shows those as escapes;
in JSON the data stays the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import typer

from shardctl.printable import printable, printable_json, printable_line

FileOption = Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The fleet's description.")]
RateOption = Annotated[
    float, typer.Option("--rate", metavar="W", min=0.001, max=1e9, help="Writes a second, of all types together.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would be done.")]
DEFAULT_FILE = Path("shards.yaml")
WAITING_SECONDS = 5.0  # without progress
NO_CREDENTIALS = (
    "no Google Cloud credentials. Run `gcloud auth application-default login`, or set PUBSUB_EMULATOR_HOST."
)


def say(text: str, *, flush: bool = False) -> None:
    """Print a message for people on stderr, never part of the data. A closed stderr stops no command."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=flush)


def out(text: str = "", *, flush: bool = False) -> None:
    """Print data: one or more lines."""
    print(printable(text), flush=flush)


def print_json(data: Any) -> None:
    print(printable_json(json.dumps(data, indent=2, ensure_ascii=False)))


def print_diff(lines: Iterable[str]) -> None:
    """A unified diff as data; on a terminal in colour, unless NO_COLOR is set."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        colour = next((code for begins, code in _COLOURS if line.startswith(begins)), None) if coloured else None
        shown = printable(line)
        print(f"\x1b[{colour}m{shown}\x1b[0m" if colour else shown)
    sys.stdout.flush()  # keeps its place among the lines on stderr


_COLOURS = (("---", 1), ("+++", 1), ("@@", 36), ("-", 31), ("+", 32))  # bold, cyan, red, green


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table, its columns in `right` flushed right: drawn by rich on a terminal, aligned plain text elsewhere."""
    rows = [[printable_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for header in headers:
            table.add_column(header, justify="right" if header in right else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / (1 << 20):,.1f} MiB"


@contextmanager
def waiting(what: Callable[[], str] | str) -> Iterator[Callable[[], None]]:
    """While the block takes long, print now and then what it waits for, so that no wait is silent.

    A `what` that changes is a function, called in another thread. Yields a function to call on progress, which restarts the wait.
    """
    over, since = Event(), [time.monotonic()]

    def tell() -> None:
        reported_at = since[0]
        while not over.wait(max(0.0, max(reported_at, since[0]) + WAITING_SECONDS - time.monotonic())):
            now = time.monotonic()
            if now - max(reported_at, since[0]) >= WAITING_SECONDS:
                say(f"still waiting for {what() if callable(what) else what}, {now - since[0]:.0f} s …")
                reported_at = now

    def moved() -> None:
        since[0] = time.monotonic()

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield moved
    finally:
        over.set()
        teller.join()

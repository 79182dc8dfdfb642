"""Stdout whose failures have their own error: a full disk is neither a bug nor a success.

A reader that closes its pipe, as `head` does, has what it needs: the rest is discarded, and the command goes on to its own end.
So `shardctl verify | head -1` still says whether everything is verified.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shardctl.errors import ShardctlError

ESCAPE = "shardctl.escape"  # how characters are encoded that an encoding lacks


class StdoutError(ShardctlError):
    """What was printed is incomplete."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: can't be written: {error.strerror}. What was printed is incomplete.")


class _Checked(io.FileIO):
    reader_left = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # Discard what is still buffered: it would be flushed, and fail again, at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not isinstance(error, BrokenPipeError):
                raise StdoutError(error) from error
            self.reader_left = True
            return len(data)


def reader_left() -> bool:
    """Whether nobody reads stdout any more: the end of a command that prints until then."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "reader_left", False)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What the terminal's encoding lacks, as JSON writes it: JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPE, _escaped)


@contextmanager
def checked() -> Iterator[None]:
    """Writes to stdout raise StdoutError. Does nothing where stdout has no file descriptor."""
    plain = sys.stdout
    try:
        handle = plain.fileno()
    except (io.UnsupportedOperation, AttributeError):
        yield
        return
    plain.flush()
    raw = _Checked(handle, "wb", closefd=False)
    errors = ESCAPE if plain.errors == "strict" else plain.errors
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=plain.encoding, errors=errors, line_buffering=raw.isatty()
    )
    try:
        yield
    finally:
        sys.stdout = plain

"""Stdout whose failures have their own error: a full disk is neither a bug nor a success.

A reader that closes its pipe, as `head` does, has what it needs: the rest is discarded, and the command goes on to its own end.
So `shardctl verify | head -1` still says whether everything is verified.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shardctl.errors import ShardctlError


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
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=plain.encoding, errors=plain.errors, line_buffering=raw.isatty()
    )
    try:
        yield
    finally:
        sys.stdout = plain

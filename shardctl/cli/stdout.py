"""Stdout whose failures have their own error: a full disk or a closed pipe is neither a bug nor a success."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shardctl.errors import ShardctlError


class StdoutError(ShardctlError):
    """What was printed is incomplete. `wanted` is false where the reader has closed it, as in `| head`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: can't be written: {error.strerror}. What was printed is incomplete.")
        self.wanted = not isinstance(error, BrokenPipeError)


class _Checked(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # Discard what is still buffered: it would be flushed, and fail again, at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise StdoutError(error) from error


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

"""The signals that end a command: SIGTERM and SIGHUP do what Ctrl-C does, an orderly end with exit code 130."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Received:
    """Which signal came first, by name; empty if none did. `close` keeps later ones from interrupting the end of the command."""

    def __init__(self) -> None:
        self.first = ""
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def __call__(self, number: int, _: Any) -> None:
        if self._closed:
            return
        self.first = self.first or signal.Signals(number).name
        raise KeyboardInterrupt


@contextmanager
def as_interrupts() -> Iterator[Received]:
    """Each signal raises KeyboardInterrupt. One that is ignored from the start stays ignored, as SIGHUP under nohup."""
    received = Received()
    with handled_by(received):
        yield received


@contextmanager
def noted_by(note: Callable[[], None]) -> Iterator[None]:
    """The first signal calls `note` instead of raising; later ones raise KeyboardInterrupt again."""
    before: dict[signal.Signals, Any] = {}

    def first(*_: Any) -> None:
        note()
        for number, handler in before.items():
            signal.signal(number, handler)

    with handled_by(first) as replaced:
        before |= replaced
        yield


@contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Handle each signal that isn't ignored from the start. Yields the handlers that it replaces; restores them at the end.

    Only the main thread may set any; elsewhere nothing is replaced.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number in _ALL:
            if (was := signal.getsignal(number)) != signal.SIG_IGN:
                signal.signal(number, handler)
                before[number] = was
    except ValueError:  # another thread than the main one
        pass
    try:
        yield before
    finally:
        for number, was in before.items():
            signal.signal(number, was)

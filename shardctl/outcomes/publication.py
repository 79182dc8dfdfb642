"""A write on its way: its message id once Pub/Sub has it, and what becomes of it after that."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a producer that doesn't wait loads no database's code
    from shardctl.outcomes.effect import Effect

LEAST_SECONDS = 0.001  # of a wait, as opposed to a single look
Look = Callable[[float], "Effect"]  # waits for so many seconds; for 0, looks once


class Publication(Future[str]):
    """The future message id."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look

    def applied(self, timeout: timedelta) -> Effect:
        """Wait until the write is applied, parked or dead, for up to `timeout`; what became of it. For 0, look once.

        Raises PublishError, TimeoutError where Pub/Sub hasn't confirmed the write by then, and UsageError where the publisher has
        no databases. A database that can't be read is no error: the effect is unknown.
        """
        seconds = timeout.total_seconds()
        until = time.monotonic() + seconds
        self.result(seconds)
        return self._look(max(LEAST_SECONDS, until - time.monotonic()) if seconds else 0.0)

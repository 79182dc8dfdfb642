"""Trouble that lasts: reported when it begins, when its kind changes and when it ends, and not at each failure.

A loop of retries meets the same error repeatedly. A line for each would hide everything else in a log; a line for the first alone
would hide the next kind of error.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

REMIND_SECONDS = 600.0  # trouble that lasts is reported again, so that later parts of a log show it too
MAX_KINDS = 64  # remembered at once

_LONG_NUMBERS = re.compile(r"\d{4,}|0x[0-9a-f]+")  # of processes, ports, transactions; a status has three digits
_BUG = "bug"


@dataclass(slots=True)
class _Kind:
    reported_at: float
    unreported: int = 0


class Trouble:
    """The trouble with one thing that is tried repeatedly. Several threads may report the same trouble twice.

    Errors are of one kind when they have the same type and, apart from long numbers, the same text. A bug's kind is where it was
    raised, and its report holds the traceback. `clock` is monotonic, in seconds.
    """

    def __init__(
        self, what: str, logger: logging.Logger, action: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._log, self._action, self._clock = what, logger, action, clock
        self._kinds: dict[str, _Kind] = {}
        self.failures = 0  # in a row

    def met(self, error: BaseException, consequence: str, *, bug: bool = False) -> None:
        """A try failed with `error`, and `consequence` follows. A bug is reported as an error, other trouble as a warning."""
        self.failures += 1
        kind, now = _kind(error, bug=bug), self._clock()
        known = self._kinds.get(kind)
        if known and now - known.reported_at < REMIND_SECONDS:
            known.unreported += 1
            return
        self._log.log(
            logging.ERROR if bug else logging.WARNING,
            "%s: %s%s; %s",
            self._what,
            str(error) or type(error).__name__,
            f" ({known.unreported} times more since this was reported)" if known and known.unreported else "",
            consequence,
            exc_info=error if bug else None,
            extra={"action": self._action},
        )
        self._remember(kind, now)

    def over(self, news: str = "works again", action: str = "recovered") -> None:
        """An attempt succeeded. Reported once, if there was trouble."""
        if self.failures:
            self._log.info("%s: %s, after %d failures", self._what, news, self.failures, extra={"action": action})
        self.failures = 0
        # An intermittent bug is reported now and then; other trouble, each time that it begins.
        self._kinds = {kind: known for kind, known in self._kinds.items() if kind.startswith(_BUG)}

    def _remember(self, kind: str, now: float) -> None:
        self._kinds.pop(kind, None)
        if len(self._kinds) == MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = _Kind(now)


def _kind(error: BaseException, *, bug: bool) -> str:
    name = type(error).__qualname__
    if not bug:
        return f"{name}: {_LONG_NUMBERS.sub('#', str(error))}"
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{_BUG} {name} at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at else f"{_BUG} {name}: {error}"

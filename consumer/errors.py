"""A failure answers one question: try this again, or never."""

from __future__ import annotations


class AgainError(Exception):
    """It may work later: nothing was lost, everything is kept, the whole batch is tried again in order."""


class NeverError(Exception):
    """The message can't succeed, whoever tries: it is set aside with `reason`, a stable word for metrics and filters."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DataFaultError(Exception):
    """The database refused what some message of the batch asks for. Which one, a search has to find."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

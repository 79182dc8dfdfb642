"""A failure answers one question: try this again, or never."""

from __future__ import annotations

from collections.abc import Collection

from shardctl.redaction import redacted
from shardctl.shard.schema import TABLE_NOT_READY


class TransientError(Exception):
    """It may work later: nothing was lost, everything is kept, the whole batch is tried again in order.

    Its text may repeat a driver's message, and shows no secret of a URL.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


class SlotsWaitError(TransientError):
    """These lanes wait for something that others don't need, such as their backend. The others go on meanwhile."""

    def __init__(self, text: str, lanes: Collection[int] = ()) -> None:
        super().__init__(text)
        self.lanes = frozenset(lanes)


class BlockedError(TransientError):
    """The service answers, but something in this batch can't finish now, such as a row that another transaction has locked.

    It doesn't say which lanes: the batch is tried again in smaller parts to find them. The other lanes go on.
    """


class PermanentError(Exception):
    """The message can never succeed: it is dead-lettered or parked with `reason`, a stable word for metrics and filters."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DataFaultError(Exception):
    """The database refuses the data of some message of the batch. A search has to find which one.

    With `key_waits`, later messages of its key mustn't be tried before it is dead-lettered or parked: a try can't be undone.
    """

    def __init__(self, reason: str, detail: str, *, key_waits: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.key_waits = key_waits


class TableNotReadyError(DataFaultError):
    """What a message type needs isn't there, such as a column of its table: no message is at fault.

    If `message_types` are several, a search has to find which. The messages of the type are parked, whatever its `on_poison`, and
    tried again until they succeed. Other types don't wait.
    """

    def __init__(self, message_types: Collection[str], detail: str) -> None:
        super().__init__(TABLE_NOT_READY, detail)
        self.message_types = frozenset(message_types)

"""Who a subscription delivers to: one open stream, or one unary Pull."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardctl.local.broker.lane import Lane


class Reader:
    """Flow control and the lanes held. A limit of 0 or less is none.

    `one_a_lane`: of a lane with anything out it gets nothing more, as a push endpoint doesn't.
    `busy` means that it can't take a delivery now (a response is still being written), so its share goes to others.
    """

    __slots__ = (
        "ack_deadline_seconds",
        "busy",
        "client_id",
        "held",
        "lanes",
        "max_bytes",
        "max_messages",
        "one_a_lane",
        "open",
        "outstanding",
        "outstanding_bytes",
    )

    def __init__(
        self,
        *,
        ack_deadline_seconds: float,
        max_messages: int = 0,
        max_bytes: int = 0,
        client_id: str = "",
        one_a_lane: bool = False,
    ) -> None:
        self.ack_deadline_seconds = ack_deadline_seconds
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.client_id = client_id
        self.one_a_lane = one_a_lane
        self.outstanding = 0
        self.outstanding_bytes = 0
        self.held = 0
        self.lanes: deque[Lane] = deque()
        self.open = True
        self.busy = False

    def has_room(self) -> bool:
        """Whether it may have one more message; the one that crosses the byte limit is still sent."""
        return (self.max_messages <= 0 or self.outstanding < self.max_messages) and (
            self.max_bytes <= 0 or self.outstanding_bytes < self.max_bytes
        )

"""One topic: its subscriptions, and the log it keeps for seeks."""

from __future__ import annotations

from collections import deque

from shardctl.broker.message import Message
from shardctl.broker.protos import Proto, to_seconds
from shardctl.broker.subscription import Subscription


class Topic:
    """`pins` holds, for each snapshot of the topic, the number of the newest message before it: all later ones stay."""

    def __init__(self, config: Proto) -> None:
        self.config = config
        self.subscriptions: dict[str, Subscription] = {}
        self.pins: dict[str, int] = {}
        self.log: deque[tuple[Message, dict[str, str]]] = deque()

    @property
    def retention_seconds(self) -> float:
        return to_seconds(self.config.message_retention_duration)

    @property
    def keeps_log(self) -> bool:
        return bool(self.pins) or self.config.HasField("message_retention_duration")

    def trim(self, now: float) -> None:
        """Drops from the log what neither the retention nor a snapshot keeps."""
        oldest = now - self.retention_seconds
        pinned = min(self.pins.values(), default=None)
        while self.log:
            message = self.log[0][0]
            if message.published >= oldest or (pinned is not None and message.number > pinned):
                return
            self.log.popleft()

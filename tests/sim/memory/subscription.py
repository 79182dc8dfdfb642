"""A subscription and its dead letters over weeks: what was acked comes again by a seek, and what fails too often is a letter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.pubsub_v1 import PubsubMessage, ReceivedMessage

from shardctl.deadletter.letter import Message
from shardctl.wire import deadletters

PubsubMessagePb, ReceivedMessagePb = PubsubMessage.pb(), ReceivedMessage.pb()
NAME = "sim-s0-g1"


@dataclass(eq=False, slots=True)
class Copy:
    """One message of a write. `published` is in seconds since 1970. The next `failures` deliveries come to no end."""

    id: str
    write: int
    published: float
    message: Any  # the protobuf PubsubMessage
    failures: int = 0
    crashes: float = 0.0  # how many of them before anything is committed; of the others the ack is lost
    attempts: int = 0
    acked: bool = False
    met: bool = False  # a consumer has committed what it makes of it


@dataclass(eq=False, slots=True)
class Dead:
    """A message on the dead-letter subscription. `replayed_at`: somebody published its write again then."""

    write: int
    message: Message
    dead_lettered_at: float
    by_consumer: bool
    taken_off: bool = False
    replayed_at: float | None = None
    copy: Copy | None = None  # the last one that a replay has published


class Subscription:
    """`retain_acked` is on. `bury` takes what fails for the last time."""

    def __init__(self, retention: float, most_attempts: int, bury: Callable[[Copy], None]) -> None:
        self._retention, self._most_attempts, self._bury = retention, most_attempts, bury
        self.copies: list[Copy] = []

    def publish(self, write: int, attributes: dict[str, str], data: bytes, now: float) -> Copy:
        name = f"{len(self.copies) + 1}"
        message = PubsubMessagePb(
            data=data, attributes=attributes, message_id=name, ordering_key=attributes.get("slot", "")
        )
        message.publish_time.FromMicroseconds(int(now * 1_000_000))
        self.copies.append(Copy(name, write, now, message))
        return self.copies[-1]

    def has(self, copy: Copy, now: float) -> bool:
        return not copy.acked and self.retains(copy, now)

    def retains(self, copy: Copy, now: float) -> bool:
        return now < copy.published + self._retention

    def failed(self, copy: Copy) -> None:
        copy.attempts += 1
        copy.failures -= 1
        if copy.attempts >= self._most_attempts:
            copy.acked = True
            self._bury(copy)

    def seek(self, to: float, now: float) -> list[Copy]:
        """Everything published since comes again, as far as it is retained."""
        back = [copy for copy in self.copies if copy.published >= to and self.retains(copy, now)]
        for copy in back:
            copy.acked, copy.attempts = False, 0
        return back


def received(copy: Copy) -> Any:
    return ReceivedMessagePb(ack_id=copy.id, message=copy.message)


def buried(copy: Copy, number: int, now: float) -> Message:
    """What Pub/Sub's own policy makes of a message."""
    moment = datetime.fromtimestamp(copy.published, UTC).isoformat()
    attributes = dict(copy.message.attributes) | {
        deadletters.SOURCE_SUBSCRIPTION: NAME,
        deadletters.SOURCE_DELIVERIES: str(copy.attempts),
        deadletters.SOURCE_PUBLISH_TIME: moment,
    }
    return Message(f"d{number}", int(now * 1_000_000), copy.message.ordering_key, attributes, copy.message.data)

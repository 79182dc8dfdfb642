"""One published message, and how deliveries of it are written on the wire."""

from __future__ import annotations

from collections.abc import Iterable

from shardctl.wire.varint import varint

_ACK_ID, _MESSAGE, _ATTEMPT, _RECEIVED = b"\x0a", b"\x12", b"\x18", b"\x0a"


class Message:
    """Shared by every subscription that holds it; immutable after publishing.

    `wire` is the serialised PubsubMessage as field 2 of a ReceivedMessage: a message is serialised once, when it is
    published, however often it is delivered. Times are seconds since the epoch; `size` is bytes.
    """

    __slots__ = ("key", "number", "published", "size", "wire")

    def __init__(self, number: int, published: float, key: str, blob: bytes) -> None:
        self.number = number
        self.published = published
        self.key = key
        self.size = len(blob)
        self.wire = _MESSAGE + varint(self.size) + blob

    def body(self) -> bytes:
        """The serialised PubsubMessage, id and publish time included."""
        return self.wire[len(self.wire) - self.size :]


def encode(deliveries: Iterable[tuple[str, Message, int]]) -> bytes:
    """(ack id, message, attempt or 0) → the `received_messages` of a PullResponse or a StreamingPullResponse.

    Written by hand because building the same through generated classes costs several times the CPU; both responses
    use field 1, and serialised protobuf messages may be concatenated.
    """
    parts: list[bytes] = []
    for ack_id, message, attempt in deliveries:
        ack, wire = ack_id.encode(), message.wire
        head = _ACK_ID + varint(len(ack)) + ack
        if attempt:
            wire += _ATTEMPT + varint(attempt)
        parts += (_RECEIVED, varint(len(head) + len(wire)), head, wire)
    return b"".join(parts)

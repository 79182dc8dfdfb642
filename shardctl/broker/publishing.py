"""What a publish request may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.protos import Proto

MAX_REQUEST_BYTES = 10_000_000
MAX_REQUEST_MESSAGES = 1000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024
_BYTES_A_CHARACTER = 4


def check_publish(request: Proto) -> Sequence[Mapping[str, str]]:
    """The attributes of each message, or InvalidArgumentError before anything is published."""
    messages = request.messages
    if not 0 < len(messages) <= MAX_REQUEST_MESSAGES:
        raise InvalidArgumentError(
            f"A publish request holds 1 to {MAX_REQUEST_MESSAGES} messages; got {len(messages)}."
        )
    size = request.ByteSize()
    if size > MAX_REQUEST_BYTES:
        raise InvalidArgumentError(f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes; got {size}.")
    all_attributes, key = [], messages[0].ordering_key
    if _too_long(key, MAX_ORDERING_KEY_BYTES):
        raise InvalidArgumentError(f"An ordering key has at most {MAX_ORDERING_KEY_BYTES} bytes.")
    for position, message in enumerate(messages):
        attributes = dict(message.attributes)
        if not attributes and not message.data:
            raise InvalidArgumentError(f"Message {position} is empty: it needs data or at least one attribute.")
        _check_attributes(position, attributes)
        if message.ordering_key != key:
            raise InvalidArgumentError("All messages of a publish request must have the same ordering key.")
        all_attributes.append(attributes)
    return all_attributes


def _check_attributes(position: int, attributes: Mapping[str, str]) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArgumentError(f"Message {position} has {len(attributes)} attributes; at most {MAX_ATTRIBUTES}.")
    for key, value in attributes.items():
        if not key or _too_long(key, MAX_ATTRIBUTE_KEY_BYTES):
            raise InvalidArgumentError(f"Message {position}: a key has 1 to {MAX_ATTRIBUTE_KEY_BYTES} bytes: {key!r}")
        if _too_long(value, MAX_ATTRIBUTE_VALUE_BYTES):
            raise InvalidArgumentError(f"Message {position}: {key}'s value exceeds {MAX_ATTRIBUTE_VALUE_BYTES} bytes.")
        if key.startswith("goog") and not key.startswith("googclient_"):
            raise InvalidArgumentError(f"Message {position}: keys that start with goog are the service's own: {key}")


def _too_long(text: str, limit: int) -> bool:
    return len(text) * _BYTES_A_CHARACTER > limit and len(text.encode()) > limit

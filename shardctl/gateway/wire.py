"""Messages as protobuf writes them, by hand: the generated classes cost several times the CPU, once a write. Pure.

`google.pubsub.v1`: a PublishRequest is its topic (field 1) and messages (2); a PubsubMessage is its data (1), attributes (2) and
ordering key (5); an attribute is a message of key (1) and value (2). Fields may come in any order, and parts may be joined.
"""

from __future__ import annotations

from collections.abc import Mapping

from shardctl.wire.varint import varint

_FIRST, _SECOND, _FIFTH = b"\x0a", b"\x12", b"\x2a"  # length-delimited fields


def attribute(name: str, value: str) -> bytes:
    return Attribute(name)(value)


def attributes(values: Mapping[str, str]) -> bytes:
    return b"".join(attribute(name, value) for name, value in values.items())


class Attribute:
    """Writes attributes of one name."""

    __slots__ = ("_begin",)

    def __init__(self, name: str) -> None:
        text = name.encode()
        self._begin = _FIRST + varint(len(text)) + text + _SECOND

    def __call__(self, value: str) -> bytes:
        text = value.encode()
        size = varint(len(text))
        return b"%b%b%b%b%b" % (_SECOND, varint(len(self._begin) + len(size) + len(text)), self._begin, size, text)


def ordering_key(key: str) -> bytes:
    text = key.encode()
    return _FIFTH + varint(len(text)) + text


def message(described: bytes, data: bytes) -> bytes:
    """One message of a PublishRequest; `described` is its ordering key and attributes."""
    size = varint(len(data))
    return b"%b%b%b\x0a%b%b" % (_SECOND, varint(len(described) + 1 + len(size) + len(data)), described, size, data)


def topic(path: str) -> bytes:
    """The beginning of a PublishRequest; messages follow."""
    text = path.encode()
    return _FIRST + varint(len(text)) + text

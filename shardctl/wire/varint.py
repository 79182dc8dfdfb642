"""Protobuf's base-128 numbers, for messages that are written by hand since the generated classes cost too much. Pure."""

_MORE = 0x80


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = tuple(map(_varint, range(1 << 14)))  # those of one and two bytes: nearly every length


def varint(value: int) -> bytes:
    """The number's bytes, least group first."""
    return _SMALL[value] if value < len(_SMALL) else _varint(value)

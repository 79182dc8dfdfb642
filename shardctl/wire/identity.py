"""Which write a message is: the 16 bytes under which the inbox records it, and a fingerprint of what it says. Pure.

A write with an idempotency key is known by its caller, its message type and that key: the same key of another caller or type is
another write. A message without a key is known by its message id, in a name space of its own. So are an entry of the inbox that
records a refused message, and one that notes a replayed letter. No text of one name space gives an identity of another.

A key is known in the slot of its routing key, so that it means the same wherever the slot lies. That is why the inbox holds an
identity `in_slot`: equal ones of two slots are two values, each unique in a database by itself.

What is published again (by a consumer, or as a replay) has a new message id. If it has no key, it names the first one's id in the
attribute `shardctl-copy-of`. Invariant: this attribute leads only into the name space of message ids, and never past the
fingerprint and the hash of type and routing key, of 32 bits each. So a forged attribute can only replace a message with the same
content; a message with other content is reported as `key_reused`, and dropped only where both agree by accident: with the same
routing key, once in 4,000 million times.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from threading import Lock

BYTES = 16
COPY_OF = "shardctl-copy-of"  # the attribute of a copy without an idempotency key: the first message's id

_TIME_BYTES = 6
_FIRST_32_BITS = Struct(">i")
_SLOT_BYTES = 4


def of_key(caller: str, message_type: str, key: str) -> bytes:
    """The identity of a write with an idempotency key. `caller` is empty where no caller was authenticated.

    A UUIDv7's time comes first, then 10 bytes of the digest, so that rows written together lie together in the index. Any other
    key gives 16 bytes of the digest.
    """
    digest = sha256(_scope(caller, message_type) + key.encode()).digest()
    moment = _time_of(key)
    return moment + digest[: BYTES - _TIME_BYTES] if moment else digest[:BYTES]


@lru_cache(maxsize=4096)  # there are few types, and few callers at a time
def _scope(caller: str, message_type: str) -> bytes:
    """The bytes before the key. With both lengths in characters, so that no other caller, type and key give the same bytes."""
    return f"shardctl key {len(caller)} {len(message_type)}\n{caller}{message_type}".encode()


def _time_of(key: str) -> bytes:
    """The first 48 bits of what begins as a UUIDv7 does (RFC 9562), in its text form or as 32 digits; nothing of other keys."""
    if len(key) == 36 and key[8] == key[13] == "-" and key[14] == "7":
        digits = key[:8] + key[9:13]
    elif len(key) == 32 and key[12] == "7":
        digits = key[:12]
    else:
        return b""
    try:
        moment = bytes.fromhex(digits)
    except ValueError:
        return b""
    return moment if len(moment) == _TIME_BYTES else b""  # blanks would be skipped


def of_message(message_id: str) -> bytes:
    """The identity of a write without an idempotency key."""
    return _digest(b"message", message_id)[:BYTES]


def of_refusal(message_id: str) -> bytes:
    """Where the inbox records that a message was refused because its identity belongs to another write.

    Not `of_message`: a forged copy may have taken that one.
    """
    return _digest(b"refusal", message_id)[:BYTES]


def of_note(name: str) -> bytes:
    """Where the inbox notes that a letter is being replayed; `name` is the letter's own."""
    return _digest(b"note", name)[:BYTES]


def in_slot(its_identity: bytes, slot: int) -> bytes:
    """The identity as a row of the inbox has it. Whatever comes first in it, as a time, stays first. Done twice, it is undone."""
    return (int.from_bytes(its_identity) ^ slot).to_bytes(BYTES)


def fingerprint(operation: str, partition_key: str, body: bytes) -> int:
    """What the write says, as a signed number of 32 bits. All three as they travel: `operation` is empty where it is left out."""
    return _signed(sha256(_body_scope(operation, len(partition_key)) + partition_key.encode() + body).digest())


@lru_cache(maxsize=4096)
def _body_scope(operation: str, key_characters: int) -> bytes:
    """The bytes before the routing key. With both lengths in characters, as in `_scope`."""
    return f"shardctl body {len(operation)} {key_characters}\n{operation}".encode()


def key_hash(message_type: str, partition_key: str) -> int:
    """Whose write it is: the message type and the routing key, as a signed number of 32 bits."""
    return _signed(sha256(_type_scope(message_type) + partition_key.encode()).digest())


@lru_cache(maxsize=4096)
def _type_scope(message_type: str) -> bytes:
    """The bytes before the routing key."""
    return f"shardctl routing key {len(message_type)}\n{message_type}".encode()


def tail(its_identity: bytes) -> int:
    """The last 4 bytes of an identity, which are a digest's, as a signed number: nearly an identity by themselves."""
    return int.from_bytes(its_identity[-_SLOT_BYTES:], signed=True)


def _signed(digest: bytes) -> int:
    number: int = _FIRST_32_BITS.unpack_from(digest)[0]
    return number


def _digest(space: bytes, text: str) -> bytes:
    return sha256(b"shardctl %b\n%b" % (space, text.encode())).digest()


# --- keys for writes that bring none ------------------------------------------------------------------------------------

_RANDOM_BITS = 74
_STEP_BITS = 32  # between two keys of one millisecond: neither can be guessed from the other


class Keys:
    """Makes UUIDv7s (RFC 9562, section 6.2, method 2): each greater than the one before. Safe to use from any thread.

    `clock` gives nanoseconds since 1970.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock, self._lock = clock, Lock()
        self._last_ms, self._last_random = 0, 0

    def new(self) -> str:
        with self._lock:
            now_ms = self._clock() // 1_000_000
            if now_ms > self._last_ms:
                # Its first bit is 0, so that there is room for more in the same millisecond.
                self._last_ms, self._last_random = now_ms, secrets.randbits(_RANDOM_BITS - 1)
            else:  # the same millisecond, or the clock went back
                self._last_random += 1 + secrets.randbits(_STEP_BITS)
                if self._last_random >> _RANDOM_BITS:
                    self._last_ms, self._last_random = self._last_ms + 1, secrets.randbits(_RANDOM_BITS - 1)
            moment, random = self._last_ms, self._last_random
        first, rest = random >> 62, random & ((1 << 62) - 1)
        digits = f"{moment << 80 | 7 << 76 | first << 64 | 2 << 62 | rest:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


new_key = Keys().new

"""Which write each idempotency key stands for, as far as this process remembers.

A convenience: it refuses most reuses at once. The shard's inbox detects those that it has forgotten or that another replica
received, and the consumer dead-letters them as `key_reused`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

MAX_CLAIMS = 50_000  # about 12 MB


class Claim(NamedTuple):
    """A write's identity and fingerprint (see `shardctl.wire.identity`), and where the request gives its key: kind and name."""

    identity: bytes
    fingerprint: int
    where: tuple[str, str]


class Claims:
    """The last keys that clients gave."""

    def __init__(self, most: int = MAX_CLAIMS) -> None:
        self._most = most
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def take(self, claim: Claim) -> bool:
        """Remember what the key stands for. False when it stands for another write already."""
        fingerprint = self._known.setdefault(claim.identity, claim.fingerprint)
        self._known.move_to_end(claim.identity)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return fingerprint == claim.fingerprint

    def give_up(self, claim: Claim) -> None:
        """The write never reached Pub/Sub, so its key is free for another."""
        self._known.pop(claim.identity, None)

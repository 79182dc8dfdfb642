"""Which redelivered messages are probably done: marks in Redis, set after the commit.

A cheap filter in front of the database, never the safety: a message that the marks know is confirmed by a read of the inbox
before it is acked. The gain is that a redelivery takes no lock and no write transaction.

The marks are bits, a Bloom filter of one hash: they take the same few megabytes however many messages a shard gets, so they
can't fill Redis up and cost it the locks. A bit that two messages share costs a read of the inbox, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from zlib import crc32

from redis.asyncio import Redis

from consumer.delivery import Delivery
from consumer.redis.breaker import KEYS_A_CALL, RedisBreaker, calls_of
from consumer.redis.script import Script

BUCKET_SECONDS = 300  # a mark lives for one to two buckets: as long as most redeliveries take
MARK_SECONDS = 0.5  # between two calls that mark: small batches would pay for one each
BITS = 1 << 25  # 4 MiB a bucket. At 5,000 messages a second it ends 4 % full: so often a redelivery is read in vain

# Both take the bits as one string of 32-bit numbers: thousands of arguments would cost the consumer more than the work is worth.
MARK = """
for at = 1, #ARGV[1], 4 do
  redis.call('SETBIT', KEYS[1], struct.unpack('<I4', ARGV[1], at), 1)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
LOOK_UP = """
local found = {}
for at = 1, #ARGV[1], 4 do
  local bit = struct.unpack('<I4', ARGV[1], at)
  local marked = redis.call('GETBIT', KEYS[1], bit) == 1 or redis.call('GETBIT', KEYS[2], bit) == 1
  found[#found + 1] = marked and 1 or 0
end
return found
"""


class SeenFilter:
    def __init__(self, redis: Redis, gate: RedisBreaker, prefix: str, clock: Callable[[], float]) -> None:
        self._gate, self._clock = gate, clock
        self._prefix = f"{{{prefix}}}:done:"
        self._mark, self._look_up = Script(redis, MARK), Script(redis, LOOK_UP)
        self._unmarked: list[bytes] = []
        self._marked_at = float("-inf")

    async def mark(self, deliveries: Sequence[Delivery]) -> None:
        """Mark messages whose effect is committed, now or with a later call. If that fails, nothing is lost."""
        self._unmarked += [delivery.identity for delivery in deliveries]
        if len(self._unmarked) >= KEYS_A_CALL or abs(self._clock() - self._marked_at) >= MARK_SECONDS:
            await self._mark_all()

    async def _mark_all(self) -> None:
        identities, self._unmarked, self._marked_at = self._unmarked, [], self._clock()
        if identities:
            await self._gate.ask(lambda: self._set(identities))

    async def probably_done(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The redelivered messages that are marked."""
        again = [delivery for delivery in deliveries if delivery.attempt > 1 and delivery.fault is None]
        if not again:
            return []
        await self._mark_all()
        marked = await self._gate.ask(lambda: self._read([delivery.identity for delivery in again]))
        return [delivery for delivery, is_marked in zip(again, marked, strict=True) if is_marked] if marked else []

    async def _set(self, identities: Sequence[bytes]) -> bool:
        for part in calls_of(identities):
            await self._mark(keys=[self._bucket(0)], args=[_bits(part), 2 * BUCKET_SECONDS])
        return True

    async def _read(self, identities: Sequence[bytes]) -> list[int]:
        buckets = [self._bucket(0), self._bucket(1)]
        marked: list[int] = []
        for part in calls_of(identities):
            marked += await self._look_up(keys=buckets, args=[_bits(part)])
        return marked

    def _bucket(self, age: int) -> str:
        return f"{self._prefix}{int(self._clock() // BUCKET_SECONDS) - age}"


def _bits(identities: Sequence[bytes]) -> bytes:
    bits = [crc32(identity) % BITS for identity in identities]
    return pack(f"<{len(bits)}I", *bits)

"""The lease as a key in Redis: `SET NX PX` with its owner's token, renewed and given up by scripts that check the token.

Redis may lose the key, above all in a failover, and then two replicas hold the lease for a while. The term in the database keeps
the one that came first from writing.
"""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import RedisError

from consumer.leader.leadership import LeaseError
from consumer.redis.script import Script

# Returns who holds the key afterwards: this replica, if it was free or its own.
HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
  holder = ARGV[1]
end
return holder
"""
RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class RedisLease:
    """One key, and one candidate for it. It ends by itself `duration_ms` after the last call of `hold` reached Redis."""

    def __init__(self, redis: Redis, prefix: str, identity: str, duration_ms: int) -> None:
        self.identity = identity
        self._key, self._duration_ms = f"{{{prefix}}}:leader", duration_ms
        self._hold, self._release = Script(redis, HOLD), Script(redis, RELEASE)

    def __str__(self) -> str:
        return f"Redis key {self._key}"

    async def hold(self) -> str:
        """Take the lease if it is free, or renew it; who holds it now. Raises LeaseError."""
        try:
            holder = await self._hold(keys=[self._key], args=[self.identity, self._duration_ms])
        except (RedisError, OSError) as error:
            raise LeaseError(f"{self}: Redis doesn't answer: {error}") from error
        return holder.decode(errors="replace") if isinstance(holder, bytes) else str(holder)

    async def release(self) -> None:
        """Free the lease, if it is ours. Raises LeaseError: then it is free when its time is over."""
        try:
            await self._release(keys=[self._key], args=[self.identity])
        except (RedisError, OSError) as error:
            raise LeaseError(f"{self}: Redis doesn't answer: {error}") from error

    async def close(self) -> None:
        """Nothing to close: the client belongs to the process."""

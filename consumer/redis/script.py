"""Scripts that Redis may forget at any time: by SCRIPT FLUSH, by a restart, in a fail-over to a server that never had them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

TRIES = 3


class Script:
    """A Lua script, called by its digest.

    redis-py loads a script that Redis doesn't know and calls it again, once. Between these two it may be forgotten again, or
    another server may have taken over, so here that is tried as often as `TRIES` says: Redis isn't gone because of it.
    """

    def __init__(self, redis: Redis, text: str) -> None:
        self._call = redis.register_script(text)

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What the script returns. Raises RedisError."""
        for _ in range(TRIES - 1):
            try:
                return await self._call(keys=keys, args=args)
            except NoScriptError:
                continue
        return await self._call(keys=keys, args=args)

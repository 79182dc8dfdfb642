"""The token for the calls of one backend: fetched once for all of them, ahead of its end, and again where it is refused.

While there is none, no call is made, and nothing counts against a write: a token server that is down dead-letters nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from consumer.sinks.http.credentials import CredentialsError
from shardctl.supervision.background import Background
from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 60.0  # between tries, while none succeeds
AHEAD_SECONDS, AHEAD_SHARE = (
    300.0,
    0.2,
)  # a token is fetched so long before the end of the present one, or this share of its life
MARGIN_SECONDS, MARGIN_SHARE = 10.0, 0.05  # before its end, a token isn't sent any more: it could end on its way
AGAIN_SECONDS, AGAIN_SHARE = 10.0, 0.1  # between two tokens, where a source returns one again that ends soon
REFUSED_AGAIN_SECONDS = 60.0  # a backend that refuses the new token too won't take the next one

log = logging.getLogger(__name__)


class TokenError(Exception):
    """There is no token now: says what its source did, and holds nothing of a token or of a credential."""


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    lifetime_seconds: float


class TokenSource(Protocol):
    name: str
    """What it is, for logs."""

    def check(self) -> None:
        """Raises CredentialsError where its Secrets can't be used."""

    async def fetch(self) -> Token:
        """A new token. Raises TokenError or CredentialsError."""


@dataclass(frozen=True, slots=True)
class _Present:
    header: str
    renew_at: float
    ends_at: float


class Tokens:
    """Lives in one event loop. `clock` is monotonic, in seconds."""

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = source, clock
        self._present: _Present | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._why = "there is no token yet"
        self._refused_until = 0.0
        self._trouble = Trouble("token for an HTTP backend", log, "token_unavailable", clock)
        self._background = Background(log)

    def __repr__(self) -> str:
        return f"Tokens({self._source.name})"

    def check(self) -> None:
        """Raises CredentialsError where a Secret can't be used. Fetches nothing."""
        self._source.check()

    async def header(self) -> str:
        """The Authorization header. Waits only where there is no token that can be sent. Raises TokenError."""
        now = self._clock()
        if self._usable(now) is None:
            if (fetching := self._begin(now)) is not None:
                await asyncio.shield(fetching)  # others wait for it too
        elif self._present and now >= self._present.renew_at:
            self._begin(now)
        if (present := self._usable(self._clock())) is None:
            raise TokenError(self._why)
        return present.header

    @property
    def missing(self) -> bool:
        """Whether the last try to get a token failed and none is left that can be sent."""
        return bool(self._trouble.failures) and self._usable(self._clock()) is None

    def refused(self, header: str) -> bool:
        """The backend answered 401 to this header. Whether another token may do better: the next header is another one then."""
        now = self._clock()
        if self._present is not None and header == self._present.header:
            if now < self._refused_until:
                return False
            self._present, self._why = None, "the backend refuses the token"
            self._refused_until = now + REFUSED_AGAIN_SECONDS
            if not self._trouble.failures:
                self._not_before = now
        return True

    async def close(self) -> None:
        await self._background.close()

    def _usable(self, now: float) -> _Present | None:
        return self._present if self._present is not None and now < self._present.ends_at else None

    def _begin(self, now: float) -> asyncio.Task[None] | None:
        """The fetch in flight, or a new one; None so soon after a failure."""
        if self._fetching is None and now >= self._not_before:
            self._fetching = self._background.once(self._source.name, self._fetch(), self._ended)
        return self._fetching

    def _ended(self) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            token = await self._source.fetch()
        except (TokenError, CredentialsError) as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001 - a bug here is no fault of a write
            last = traceback.extract_tb(error.__traceback__)[-1]  # not its text, which may hold a credential
            self._failed(TokenError(f"failed by a bug: {type(error).__name__} at {last.filename}:{last.lineno}"))
        else:
            self._take(token)

    def _take(self, token: Token) -> None:
        now, life = self._clock(), token.lifetime_seconds
        if life <= 0:
            self._failed(TokenError("returned a token that has ended already: compare the clocks"))
            return
        ends_at = now + life - min(MARGIN_SECONDS, MARGIN_SHARE * life)
        self._present = _Present(f"Bearer {token.value}", now + life - min(AHEAD_SECONDS, AHEAD_SHARE * life), ends_at)
        self._not_before = now + min(AGAIN_SECONDS, AGAIN_SHARE * life)
        self._trouble.over(f"{self._source.name} works again")

    def _failed(self, error: Exception) -> None:
        now = self._clock()
        self._why = f"{self._source.name} {error}"
        if self._usable(now):
            consequence = "the present token is used until it ends"
        else:
            consequence = "no call is made and writes are kept until it returns a token"
        self._trouble.met(TokenError(self._why), consequence)
        pause = backoff(self._trouble.failures, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, random.random())
        self._not_before = now + pause

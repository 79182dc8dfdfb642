"""Keeping the lease: asks for it again and again, and signals when leading begins and when it is over."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from consumer.leader.election import Election
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

RELEASE_SECONDS = 2.0


class LeaseError(Exception):
    """It is unknown who holds the lease: the API or Redis is unreachable, or refuses."""


class Lease(Protocol):
    @property
    def identity(self) -> str: ...
    async def hold(self) -> str: ...
    async def release(self) -> None: ...


class Leadership:
    """`over` is set when the leadership that `won` returned has ended. A leader that can't renew ends it by itself, in time."""

    def __init__(self, lease: Lease, election: Election, clock: Callable[[], float]) -> None:
        self._lease, self._election, self._clock = lease, election, clock
        self._leads = asyncio.Event()
        self.over = asyncio.Event()
        self.over.set()
        self._unanswered_for = "the lease has not been asked for yet"
        self._trouble = Trouble("the leader's lease", log, "lease_unanswered", clock)

    @property
    def leading(self) -> bool:
        return self._leads.is_set()

    @property
    def trouble(self) -> str | None:
        """Why it is unknown who leads; None while the lease's requests are answered."""
        if self._unanswered_for and (
            not self._election.holder
            or self._election.silent_seconds(self._clock()) > self._election.times.lease_duration
        ):
            return self._unanswered_for
        return None

    @property
    def failing(self) -> bool:
        """Whether the last try to take or renew the lease had no answer."""
        return self._trouble.failures > 0

    async def won(self) -> asyncio.Event:
        """Wait until this replica leads; the returned event is set once that is over."""
        await self._leads.wait()
        return self.over

    async def keep(self) -> None:
        """Take the lease whenever it is free, and renew it. Runs until it is cancelled, also while the replica drains."""
        while True:
            await self._try()
            await asyncio.sleep(self._election.pause(self._clock(), random.random()))

    async def release(self) -> None:
        """Let another replica lead at once. Call it when nothing is in flight here any more, and `keep` has ended."""
        leading = self.leading
        self._end("it stops")
        try:  # a standby too: it may have won at the moment of the stop
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._lease.release()
        except (LeaseError, TimeoutError) as error:
            log.warning(
                "the lease couldn't be released (%s): if this replica held it, it is free when its duration is over",
                error,
            )
            return
        if leading:
            log.info("released the lease", extra={"action": "lease_released"})

    async def _try(self) -> None:
        election, asked_at = self._election, self._clock()
        if election.expire(asked_at):  # the process was frozen meanwhile
            self._end("it could not renew its lease in time")
        try:
            async with asyncio.timeout(election.patience(asked_at)):
                holder = await self._lease.hold()
        except (LeaseError, TimeoutError) as error:
            self._unanswered(error)
        else:
            self._answered(holder, asked_at)

    def _unanswered(self, error: Exception) -> None:
        if not isinstance(error, LeaseError):
            error = LeaseError("no answer in time")
        self._unanswered_for = str(error)
        self._trouble.met(error, "it is asked for again; while no replica holds it, none writes")
        if self._election.expire(self._clock()):
            self._end("it could not renew its lease in time")

    def _answered(self, holder: str, asked_at: float) -> None:
        election, before = self._election, self._election.holder
        self._unanswered_for = ""
        self._trouble.over("its requests are answered again", "lease_answered")
        if holder == self._lease.identity:
            election.held(asked_at, self._clock(), holder)
        else:
            election.taken(self._clock(), holder)
        if election.leading and not self.leading:
            self.over = asyncio.Event()
            self._leads.set()
        elif self.leading and not election.leading:
            self._end(f"{holder} has the lease")
        elif not election.leading and holder != before:
            log.info("stands by: %s leads", holder or "nobody yet", extra={"action": "standing_by"})

    def _end(self, why: str) -> None:
        if self.leading:
            log.info("no longer leads: %s", why, extra={"action": "lease_lost"})
        self._leads.clear()
        self.over.set()

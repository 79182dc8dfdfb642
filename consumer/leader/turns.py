"""A replica's life where one leads: stand by → win the lease → begin a term → write until that is over → stand by again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol

from consumer.errors import TransientError
from consumer.leader.leadership import Leadership
from consumer.observability.metrics import Metrics
from consumer.replica.lifecycle import NotDrainedError
from consumer.replica.maintenance import NotEndedError
from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 5.0


class OwnTerm(Protocol):
    def begin(self) -> int: ...
    def end(self) -> None: ...


class Work(Protocol):
    """As `Replica`: reads and writes until the event is set, then finishes or hands back what it has."""

    @property
    def why_not_ready(self) -> str | None: ...
    async def run(self, stop: asyncio.Event) -> None: ...


class AlwaysActive:
    """A replica's life where nobody leads: it writes all the time."""

    writing = True

    def __init__(self, new_work: Callable[[], Work]) -> None:
        self._work = new_work()

    @property
    def why_not_ready(self) -> str | None:
        return self._work.why_not_ready

    async def run(self, stop: asyncio.Event) -> None:
        await self._work.run(stop)


class LeaderLoop:
    """Each turn has work of its own, made when it begins."""

    def __init__(
        self,
        new_work: Callable[[], Work],
        leadership: Leadership,
        term: OwnTerm,
        threads: Executor,
        metrics: Metrics,
    ) -> None:
        self._new_work, self._leadership, self._term = new_work, leadership, term
        self._threads, self._metrics = threads, metrics
        self._work: Work | None = None
        self._undrained: NotDrainedError | NotEndedError | None = None
        metrics.leader.set(0)
        metrics.leader_lease_failing.set_function(lambda: float(leadership.failing))

    @property
    def writing(self) -> bool:
        return self._work is not None

    @property
    def why_not_ready(self) -> str | None:
        """A standby is ready: it takes over as soon as it may. But not while it is unknown who leads."""
        if self._work:
            return self._work.why_not_ready
        if self._leadership.leading:
            return "it has the lease, and waits until the writes of the leader before it have ended"
        return self._leadership.trouble

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then messages in flight are finished or handed back, and only then is the lease released.

        Raises NotDrainedError or NotEndedError where a thread of any turn may still be waiting for the database.
        """
        keeping = asyncio.create_task(self._leadership.keep(), name="lease")
        turns = asyncio.create_task(self._take(stop), name="turns")
        try:
            done, _ = await asyncio.wait((keeping, turns), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # keeping the lease ends only by a bug: raise it
        finally:
            for task in (turns, keeping):
                task.cancel()
            await asyncio.gather(turns, keeping, return_exceptions=True)
            await self._leadership.release()
        if self._undrained:
            raise self._undrained

    async def _take(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            over = await _first(self._leadership.won(), stop)
            if over is None:
                return
            async with _either(over, stop) as ended:
                if await self._begin(ended):
                    await self._serve(ended)

    async def _begin(self, ended: asyncio.Event) -> bool:
        """Begin a term, and try again until the database answers. False if leading ended first."""
        trouble = Trouble("the term in the database", log, "term_not_begun")
        while not ended.is_set():
            beginning = asyncio.get_running_loop().run_in_executor(self._threads, self._term.begin)
            if not await _done_before(beginning, ended):
                # Nobody awaits it any more: read its result here, or asyncio complains.
                beginning.add_done_callback(lambda future: future.cancelled() or future.exception())
                self._undrained = NotEndedError()
                return False
            try:
                number = beginning.result()
            except TransientError as error:
                trouble.met(error, "it begins as soon as the database answers, and nothing is read until then")
                pause = backoff(trouble.failures, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), pause)
            else:
                trouble.over("it has begun", "term_begun")
                log.info("leads in term %s: reads and writes from now on", number, extra={"action": "leading"})
                return not ended.is_set()
        return False

    async def _serve(self, ended: asyncio.Event) -> None:
        self._work = self._new_work()
        self._metrics.leader.set(1)
        self._metrics.leader_transitions.inc()
        try:
            await self._work.run(ended)
        except NotDrainedError as error:
            log.warning("stood down: %s", error, extra={"action": "stood_down"})
            self._undrained = error
        else:
            log.info("stood down: messages in flight are written or handed back", extra={"action": "stood_down"})
        finally:
            self._work = None
            self._term.end()
            self._metrics.leader.set(0)


async def _first(won: Awaitable[asyncio.Event], stop: asyncio.Event) -> asyncio.Event | None:
    """The result of `won`, or None if `stop` comes first."""
    winning, stopping = asyncio.ensure_future(won), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((winning, stopping), return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else winning.result()
    finally:
        winning.cancel()
        stopping.cancel()


async def _done_before(future: asyncio.Future[int], event: asyncio.Event) -> bool:
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((future, waiting), return_when=asyncio.FIRST_COMPLETED)
        return future.done()
    finally:
        waiting.cancel()


@contextlib.asynccontextmanager
async def _either(*events: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """An event that is set with the first of `events`."""
    either = asyncio.Event()

    async def watch(event: asyncio.Event) -> None:
        await event.wait()
        either.set()

    watching = [asyncio.create_task(watch(event)) for event in events]
    try:
        yield either
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

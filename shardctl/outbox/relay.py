"""The relay of an outbox: takes a turn, publishes what it holds, deletes it; until it is stopped.

A turn is one transaction: lock, read, publish, delete, commit. Killed anywhere in it, the rows are still there, and the next turn
publishes them again, with the same idempotency keys: see `shardctl.outbox.queue` for why their order holds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shardctl.outbox.queue import Backlog, Queue
from shardctl.outbox.row import Row
from shardctl.outbox.sending import NotTakenError, Sent, Topics, send
from shardctl.shard.database import DatabaseError
from shardctl.supervision.backoff import backoff
from shardctl.supervision.trouble import Trouble

POLL_SECONDS = 0.02  # between two looks into an empty outbox
OFTEN_SECONDS = (
    2.0  # for how long a relay that is usually woken looks so often: longer than most transactions take to commit
)
STANDBY_SECONDS = 0.2  # between two looks while another relay is at work
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.1, 5.0
MEASURE_SECONDS = 15.0

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Observer(Protocol):
    """What a relay reports to: its metrics."""

    def published(self, rows: int) -> None: ...
    def refused(self, rows: int) -> None: ...
    def measured(self, backlog: Backlog | None) -> None:
        """None where it is unknown."""

    def database_answers(self, answers: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What one turn did. `busy` where there may be more to do at once; `waits` says why something waits.

    `behind`: how many writes were put behind refused ones of their keys. `kept`: how many refused ones a drain has left.
    """

    published: int = 0
    refused: int = 0
    behind: int = 0
    busy: bool = False
    waits: str = ""
    kept: int = 0


class Relay:
    """One event loop's. `threads` run the database's calls: one thread is enough.

    It looks every `POLL_SECONDS` for a while after `wake` and after each turn, else every `idle_seconds`.
    """

    def __init__(
        self,
        queue: Queue,
        topics: Topics,
        threads: Executor,
        observer: Observer,
        *,
        idle_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._topics, self._threads, self._observer = queue, topics, threads, observer
        self._idle_seconds, self._clock = idle_seconds, clock
        self._looks_often_until = float("-inf")
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._database = Trouble("the outbox's database", log, "outbox_database")
        self._pubsub = Trouble("the outbox's writes", log, "outbox_waits")
        self._skipped: dict[int, tuple[float, int]] = {}  # slots that wait: until when, after how many failures
        self._stands_by = False
        self._measured_at = float("-inf")
        self.waiting_for: str | None = "the outbox's database has not answered yet"

    async def run(self, may_work: Callable[[], bool] = lambda: True) -> None:
        """Until `stop`; then the turn under way ends first, in at most some seconds. No failure of a server ends it."""
        checked = False
        while not self._stop.is_set():
            try:
                if not checked:
                    await self._call(self._queue.check)
                    checked = True
                step = await self.step() if may_work() else Step()
                await self._measure()
            except DatabaseError as error:
                checked = False
                await self._pause(self._failed(error))
            else:
                self._works()
                if not step.busy:
                    await self._pause(self._seconds_to_next())

    async def drain(self, patience_seconds: float) -> Step:
        """Publish what waits now, apart from refused rows. Gives up after so long without progress; `waits` then says why."""
        published = refused = behind = 0
        until: int | None = None
        progress_at = self._clock()
        while not self._stop.is_set():
            try:
                if until is None:
                    await self._call(self._queue.check)
                    until = await self._call(self._queue.newest)
                step = await self.step()
                over = not await self._call(functools.partial(self._queue.waits_up_to, until))
                kept = (await self._call(self._queue.backlog)).refused if over else 0
            except DatabaseError as error:
                step, over, kept = Step(waits=str(error)), False, 0
                await self._pause(self._failed(error))
            else:
                self._works()
            published, refused = published + step.published, refused + step.refused
            behind += step.behind
            if over:
                return Step(published, refused, behind, kept=kept)
            if step.busy:
                progress_at = self._clock()
            elif self._clock() >= progress_at + patience_seconds:
                return Step(published, refused, behind, waits=step.waits or "another relay is at work")
            else:
                await self._pause(POLL_SECONDS)
        return Step(published, refused, behind, waits="it was stopped")

    def stop(self) -> None:
        """End after the turn under way. From the event loop."""
        self._stop.set()

    def wake(self) -> None:
        """Look at once, and often for a while: something has been stored, and will be committed. From the event loop."""
        self._looks_often_until = self._clock() + OFTEN_SECONDS
        self._wake.set()

    async def step(self) -> Step:
        """One turn. Raises DatabaseError; then nothing was deleted, and what was published is published again."""
        skip = self._skipped_now()
        turn = await self._call(lambda: self._queue.take(skip))
        self._stands_by = turn is not None and not turn.rows
        if turn is None:  # what doesn't wait any more, another relay has published
            self._skipped = {slot: wait for slot, wait in self._skipped.items() if slot in skip}
        if turn is None or not turn.rows:
            return Step(waits=self._what_waits())
        try:
            sent = await send(self._topics, turn.rows, turn.refused)
        except BaseException:
            turn.give_up()
            raise
        await self._call(lambda: turn.end(sent.published, sent.refused, sent.behind))
        self._looks_often_until = self._clock() + OFTEN_SECONDS
        self._report(sent, {row.position: row for row in turn.rows})
        busy = bool(sent.published or sent.refused or sent.behind)
        return Step(len(sent.published), len(sent.refused), len(sent.behind), busy, self._what_waits())

    def _report(self, sent: Sent, rows: Mapping[int, Row]) -> None:
        self._observer.published(len(sent.published))
        self._observer.refused(len(sent.refused))
        for position, reason in sent.refused.items():
            log.error(
                "write %d of the outbox can't be published: %s; it is kept, and later writes of its key wait behind it: see "
                "`shardctl outbox list`",
                position,
                reason,
                extra={"action": "outbox_refused", "slot": rows[position].slot},
            )
        self._wait_for_slots(sent.waiting, {rows[position].slot for position in sent.published})

    def _wait_for_slots(self, waiting: Mapping[int, NotTakenError], working: set[int]) -> None:
        for slot in working - waiting.keys():
            self._skipped.pop(slot, None)
        for slot, error in waiting.items():
            failures = self._skipped.get(slot, (0.0, 0))[1] + 1
            pause = backoff(failures, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, random.random())
            self._skipped[slot] = (self._clock() + pause, failures)
            self._pubsub.met(error, "they are kept in order and tried again; other slots go on")
        if not self._skipped:
            self._pubsub.over("are published again", "outbox_works")

    def _skipped_now(self) -> tuple[int, ...]:
        now = self._clock()
        return tuple(slot for slot, (until, _) in self._skipped.items() if until > now)

    def _what_waits(self) -> str:
        return f"{len(self._skipped)} slots wait for Pub/Sub" if self._skipped else ""

    def _seconds_to_next(self) -> float:
        if self._stands_by:
            return STANDBY_SECONDS
        return POLL_SECONDS if self._clock() < self._looks_often_until else self._idle_seconds

    def _works(self) -> None:
        self.waiting_for = None
        self._observer.database_answers(True)
        self._database.over("answers", "outbox_database_answers")

    def _failed(self, error: DatabaseError) -> float:
        """Report it; for how long to wait."""
        self.waiting_for = str(error)
        self._observer.database_answers(False)
        self._database.met(error, "it is asked again, and no writes leave until it answers")
        return backoff(self._database.failures, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, random.random())

    async def _measure(self) -> None:
        if self._clock() < self._measured_at + MEASURE_SECONDS:
            return
        self._observer.measured(None)
        self._observer.measured(await self._call(self._queue.backlog))
        self._measured_at = self._clock()

    async def _pause(self, seconds: float) -> None:
        """Shorter after `wake` or `stop`."""
        self._wake.clear()
        waits = [asyncio.ensure_future(event.wait()) for event in (self._stop, self._wake)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _call(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

"""Waits for writes to be settled, by looking into the inboxes of the shards that own their slots.

Each shard has one look at a time, for all who wait for something of it, and a pause of at least as long as the look behind it.
So a shard's database spends at most half of one session on looks, however many wait. A write whose slot isn't active where it was
looked for goes on to the next shard that may have it, and so follows a rebalance.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneError

from sqlalchemy import Engine

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.outcomes.effect import FINAL, Effect, Sought, State
from shardctl.outcomes.inboxes import look
from shardctl.reader.owners import Owners
from shardctl.reader.routes import Routes
from shardctl.supervision.background import start_thread
from shardctl.supervision.trouble import Trouble

PAUSE_SECONDS = 0.025
WRITES_A_LOOK = 500
FRESH_SECONDS = 1.0  # an older look doesn't say that a write is still unseen
LOOK_SECONDS = 2.0  # for one look

_log = logging.getLogger(__name__)


class Waiter:
    """A caller that waits for a write. `future` gets its effect; a caller that stops waiting calls `leave`.

    `patient`: only a settled write ends the wait. Else the first look by the slot's owner does.
    """

    def __init__(self, write: Sought, shards: tuple[str, ...], *, patient: bool, clock: Callable[[], float]) -> None:
        self.write, self.future = write, Future[Effect]()
        self._shards, self._turn, self._patient = shards, 0, patient
        self._clock, self._latest, self._looked_at = clock, Effect(State.UNKNOWN, "no database has answered yet"), 0.0

    @property
    def shard(self) -> str:
        """Where to look next."""
        return self._shards[self._turn % len(self._shards)]

    def leave(self) -> Effect:
        """Stop waiting: what is known by now. What was unseen long ago is unknown."""
        self.future.cancel()
        if self.future.done() and not self.future.cancelled():
            return self.future.result()
        if self._latest.state is State.NOT_SEEN and self._clock() - self._looked_at > FRESH_SECONDS:
            return Effect(State.UNKNOWN, f"shard {self._latest.shard} doesn't answer")
        return self._latest

    def meet(self, effect: Effect, began: float) -> bool:
        """What a look that began then has shown; whether the wait is over."""
        self._latest, self._looked_at = effect, began
        if effect.state is State.UNKNOWN:
            self._turn += 1
            over = not self._patient and self._turn >= 2 * len(self._shards)
        else:
            over = effect.state in FINAL or not self._patient
        if over and self.future.set_running_or_notify_cancel():
            self.future.set_result(effect)
        return over


class Watch:
    """`databases`: an engine to the primary of each shard. Its threads are daemons, and end where nobody waits."""

    def __init__(
        self, fleet: Fleet, databases: Mapping[str, Engine], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises UsageError."""
        self._routes = Routes(fleet, databases)
        self._owners = Owners(self._routes, databases, {}, time.sleep)
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._waiting: dict[str, deque[Waiter]] = {}  # by shard that a thread looks at
        self._places: dict[tuple[tuple[str, ...], int], str] = {}  # where each slot was active last
        self._troubles = {shard: Trouble(f"the inbox of shard {shard}", _log, "unreadable") for shard in databases}
        self.looks = 0

    def effect(self, write: Sought, seconds: float) -> Effect:
        """Wait for up to so long until the write is settled; for 0, look once."""
        waiter = self.begin(write, patient=seconds > 0)
        try:
            return waiter.future.result(seconds or LOOK_SECONDS)
        except NotDoneError:
            return waiter.leave()

    def begin(self, write: Sought, *, patient: bool) -> Waiter:
        holders = self._routes.holders((write.message_type,))
        with self._lock:
            last = self._places.get((holders, write.slot))
        shards = dict.fromkeys((*filter(None, (last,)), *self._routes.listed(holders, write.slot)))
        waiter = Waiter(write, tuple(shards), patient=patient, clock=self._clock)
        self._queue(waiter)
        return waiter

    def _queue(self, waiter: Waiter) -> None:
        shard = waiter.shard
        with self._lock:
            queue = self._waiting.get(shard)
            if queue is not None:
                queue.append(waiter)
                return
            self._waiting[shard] = deque((waiter,))
        start_thread(f"outcomes of {shard}", lambda: self._run(shard), _log)

    def _run(self, shard: str) -> None:
        try:
            self._work(shard)
        except BaseException:  # a bug, which the thread reports: the next waiter starts another one
            with self._lock:
                self._waiting.pop(shard, None)
            raise

    def _work(self, shard: str) -> None:
        while waiters := self._next(shard):
            began = self._clock()
            effects = self._look(shard, waiters)
            for waiter in waiters:
                if not waiter.meet(effects[waiter.write], began):
                    self._queue(waiter)
            time.sleep(max(PAUSE_SECONDS, self._clock() - began))

    def _next(self, shard: str) -> list[Waiter]:
        with self._lock:
            queue = self._waiting[shard]
            waiters: list[Waiter] = []
            while queue and len(waiters) < WRITES_A_LOOK:
                waiter = queue.popleft()
                if not waiter.future.done():
                    waiters.append(waiter)
            if not waiters:
                del self._waiting[shard]
        return waiters

    def _look(self, shard: str, waiters: list[Waiter]) -> dict[Sought, Effect]:
        writes = {waiter.write for waiter in waiters}
        self.looks += 1
        try:
            effects = look(self._owners, shard, writes)
        except ShardctlError as error:
            self._troubles[shard].met(error, "what became of its writes is unknown until it answers")
            return dict.fromkeys(writes, Effect(State.UNKNOWN, f"shard {shard} can't be read"))
        self._troubles[shard].over("answers again", "readable")
        moving = Effect(State.UNKNOWN, "the slot is changing hands")
        with self._lock:
            for write in effects:
                self._places[self._routes.holders((write.message_type,)), write.slot] = shard
        return {write: effects.get(write, moving) for write in writes}

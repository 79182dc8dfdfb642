"""One replica of one shard: receives messages, passes batches to its workers, and drains when it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from consumer.delivery import Delivery, check_slot
from consumer.errors import BlockedError, PermanentError, SlotsWaitError, TransientError
from consumer.observability.metrics import Metrics
from consumer.replica.batch import Batch, Batcher
from consumer.replica.handle import Handler
from consumer.replica.since import Since
from consumer.sinks.base import Sink
from consumer.store.term import NotLeaderError
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.supervision.backoff import backoff

log = logging.getLogger(__name__)

# A lane locked elsewhere is usually free within one batch; one that is due here may not be for seconds, and then its writes wait.
FIRST_KEPT_SECONDS, LAST_KEPT_SECONDS = 0.05, 0.2
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 10.0
WHOLE_TRIES = 2  # of a batch that fails with everything else; then it is tried in parts: one lane may be the cause
HELD_TRIES = 2  # after so many tries it isn't just bad luck: the messages may wait for long
LEFT_FOR_HANDING_BACK = 0.5  # of the drain timeout
WORK_ON_SECONDS = 0.01  # between two looks whether all is written
LEAST_SECONDS = 1.0  # for the last calls at the end of a drain that took all of its time


class NotDrainedError(Exception):
    """Batches were still in flight at the end of the drain timeout. They may yet commit; unacked, they are redelivered."""

    def __init__(self, batches: int) -> None:
        super().__init__(
            f"{batches} batches were still in flight at the end of drain_timeout: they will be redelivered"
        )
        self.batches = batches


class Reader(Protocol):
    """Where messages come from and are answered for: `consumer.intake.pull`, or `consumer.intake.push.intake`."""

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]: ...
    @property
    def connected(self) -> bool: ...
    def start(self, deliver: Callable[[list[Delivery]], None], pause_left: Callable[[], float]) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def stop_reading(self) -> None: ...
    async def hand_back(self, deliveries: Sequence[Delivery]) -> None: ...
    async def close(self, timeout_seconds: float) -> None: ...


class Replica:
    def __init__(
        self,
        config: ShardConfig,
        sink: Sink,
        intake: Reader,
        handler: Handler,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        settings = config.consumer
        self._config, self._sink, self._intake, self._handler = config, sink, intake, handler
        self._metrics, self._clock = metrics, clock
        # A batch waits for its turn under a rate limit: no longer than a second.
        max_rows = min(settings.batch_max_rows, settings.rate_limit or settings.batch_max_rows)
        self._batcher = Batcher(max_rows, settings.batch_max_bytes, settings.batch_max_age_ms / 1000)
        self._idle: deque[asyncio.Future[None]] = deque()  # a future for each worker that waits for a batch
        self._alarm: asyncio.TimerHandle | None = None  # looks for a batch again, at
        self._alarm_at = 0.0
        self._stopping = asyncio.Event()
        self._failures: dict[int, int] = {}  # how often in a row a lane's batch failed
        self._failure = ""  # why the last of them did
        self._alone: set[int] = set()  # those among them that wait alone: this replica is as ready as any other
        self._kept: dict[int, int] = {}  # how often in a row a lane's messages were kept
        self._failing_since, self._kept_since = Since(clock), Since(clock)
        metrics.slot_failing_seconds.set_function(self._failing_since.longest_seconds)
        metrics.slot_held_seconds.set_function(self._kept_since.longest_seconds)
        self._outages = 0  # tries in a row that failed as everything would
        self._prober: asyncio.Task[None] | None = None  # the worker that tries meanwhile; the others wait
        self._probed = asyncio.Event()
        self._probed.set()

    @property
    def failing(self) -> str | None:
        """Why a batch failed that hasn't succeeded since, even if others have."""
        return self._failure if self._failures.keys() - self._alone else None

    @property
    def why_not_ready(self) -> str | None:
        if self.failing:
            return f"a batch failed and is tried again: {self.failing}"
        return None if self._intake.connected else "not connected to every subscription"

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """Queue messages, each checked as far as possible without the database."""
        for delivery in deliveries:
            if delivery.fault is None and delivery.barrier is None:
                try:
                    self._sink.check(delivery)
                    check_slot(delivery, self._config)
                except PermanentError as fault:
                    delivery.fault = fault
        self._batcher.add(deliveries)
        self._wake_when_due()

    def _pause_left(self) -> float:
        return self._batcher.pause_left(self._clock())

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then finish the batches in flight and hand back the rest, inside the drain timeout.

        Raises NotDrainedError if batches are still in flight at its end.
        """
        self._intake.start(self._deliver, self._pause_left)
        workers = [asyncio.create_task(self._work_off()) for _ in range(self._config.consumer.concurrency)]
        stopped = asyncio.create_task(stop.wait())
        try:
            tasks = [stopped, *workers, *self._intake.tasks]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # workers and readers end only by a bug: raise it
        finally:
            stopped.cancel()
            in_flight = await self._drain(workers)
        if in_flight:
            raise NotDrainedError(in_flight)
        for worker in workers:
            worker.result()  # a bug in the middle of the drain

    async def _drain(self, workers: list[asyncio.Task[None]]) -> int:
        """How many batches are still in flight when the time is over."""
        timeout = self._config.consumer.drain_timeout.total_seconds()
        end = self._clock() + timeout
        await self._intake.stop_reading()
        await self._work_on(workers, end - timeout * LEFT_FOR_HANDING_BACK)
        self._end_work()
        waiting = self._batcher.drain()
        _, unfinished = await asyncio.wait(workers, timeout=end - self._clock())
        for worker in unfinished:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)  # every result is read: else asyncio complains later
        waiting = [*self._batcher.drain(), *waiting]  # returned batches go before what waited behind them
        if not unfinished:
            # Only now that nothing is in flight: a message handed back earlier could be applied elsewhere before one of its slot
            # that is still in flight here.
            with contextlib.suppress(TimeoutError):  # then they are redelivered when their lease ends
                await asyncio.wait_for(self._intake.hand_back(waiting), max(LEAST_SECONDS, end - self._clock()))
            log.info("drained: %s messages handed back", len(waiting), extra={"action": "drained"})
        await self._intake.close(max(LEAST_SECONDS, end - self._clock()))
        return len(unfinished)

    async def _work_on(self, workers: list[asyncio.Task[None]], until: float) -> None:
        """Write what was received: handed back, it would wait for the subscription's back-off before another replica gets it.

        Except for slots that are locked elsewhere or not active here, and not while batches fail.
        """
        while self._batcher.busy and not self.failing and self._clock() < until:
            if all(worker.done() for worker in workers):  # by a bug
                return
            await asyncio.sleep(WORK_ON_SECONDS)

    async def _work_off(self) -> None:
        while not self._stopping.is_set():
            if self._prober not in {None, asyncio.current_task()}:
                await self._probed.wait()
                continue
            batch = self._batcher.take(self._clock())
            if batch is None:
                await self._wait_for_work()
                continue
            self._wake_when_due()  # there may be another batch, for another worker
            await self._handle(batch)

    def _end_work(self) -> None:
        """Let the workers end after the batches that they have."""
        self._stopping.set()
        while self._idle:
            self._wake_one()
        self._probed.set()

    async def _wait_for_work(self) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(woken)
        self._wake_when_due()
        await woken

    def _wake_one(self) -> None:
        while self._idle:
            woken = self._idle.popleft()
            if not woken.done():  # as where its worker was cancelled
                woken.set_result(None)
                return

    def _wake_when_due(self) -> None:
        """Wake one of the idle workers as soon as there is a batch for it. A busy worker looks for its next batch by itself."""
        now = self._clock()
        due = self._batcher.due_at(now) if self._idle else None
        if due is None or (self._alarm and self._alarm_at <= due):
            return
        if self._alarm:
            self._alarm.cancel()
        if due <= now:
            self._alarm = None
            self._wake_one()
        else:
            self._alarm_at = due
            self._alarm = asyncio.get_running_loop().call_later(max(0.001, due - now), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake_when_due()

    async def _handle(self, batch: Batch) -> None:
        try:
            with self._metrics.batch_seconds.time():
                handled = await self._handler.handle(batch)
        except (BlockedError, SlotsWaitError) as error:
            self._go_on()
            self._wait_alone(batch, error)
            return
        except TransientError as error:
            await self._back_off(batch, error)
            return
        except NotLeaderError as error:
            log.warning("%s: everything is handed back", error, extra={"action": "not_leader"})
            self._batcher.back(batch, batch.deliveries, self._clock())
            self._end_work()  # the workers end, and with the first of them `run`
            return
        except BaseException:
            self._batcher.back(batch, batch.deliveries, self._clock())
            raise
        self._go_on()
        waiting = handled.later.lanes if handled.later else frozenset()
        for lane in batch.lanes:
            if lane not in waiting:
                self._failures.pop(lane, None)
                self._alone.discard(lane)
                self._failing_since.end(lane)
        if handled.kept:
            wait = self._keep(batch, [delivery for delivery in handled.kept if delivery.lane not in waiting])
            if handled.later:
                wait = max(wait, self._fail([lane for lane in batch.lanes if lane in waiting], handled.later))
            self._batcher.back(batch, handled.kept, self._clock() + wait)
        else:
            self._batcher.done(batch)
            for lane in batch.lanes:
                self._kept.pop(lane, None)
                self._kept_since.end(lane)

    def _keep(self, batch: Batch, kept: Sequence[Delivery]) -> float:
        """Seconds until the kept messages are tried again: longer each time, as long as all of them have waited before."""
        lanes = {delivery.lane for delivery in kept}
        before = min((self._kept.get(lane, 0) for lane in lanes), default=0)
        self._kept_since.begin(lanes)
        for lane in batch.lanes:
            if lane in lanes:
                self._kept[lane] = self._kept.get(lane, 0) + 1
            else:
                self._kept.pop(lane, None)
                self._kept_since.end(lane)
        for delivery in kept:
            if self._kept[delivery.lane] == HELD_TRIES:
                delivery.keep()
        return backoff(before + 1, FIRST_KEPT_SECONDS, LAST_KEPT_SECONDS, random.random())

    def _wait_alone(self, batch: Batch, error: BlockedError | SlotsWaitError) -> None:
        """Only some lanes must wait and the others go on: otherwise one write that can't finish would stop the shard."""
        if isinstance(error, BlockedError) and len(batch.lanes) > 1:
            self._failing_since.begin(batch.lanes)
            self._metrics.batch_retries.labels("again").inc()
            log.info("%s: %s slots are tried again in smaller parts", error, len(batch.lanes))
            self._batcher.split(batch, self._clock())
        else:
            again = self._batcher.split if isinstance(error, BlockedError) else self._batcher.back_whole
            again(batch, self._clock() + self._fail(batch.lanes, error))

    async def _back_off(self, batch: Batch, error: TransientError) -> None:
        """Keep everything, in order, under lease; receive nothing more; try again later, without a restart.

        One worker tries; the others wait for it. A batch that fails again is tried in parts: it may be the only one that fails.
        Once other batches have succeeded it is, and then it stops no other.
        """
        wait = self._fail(batch.lanes, error)
        again = self._batcher.split if self._failures[batch.lanes[0]] > WHOLE_TRIES else self._batcher.back_whole
        again(batch, self._clock() + wait)
        if batch.of_suspects and self._prober is None:
            return
        if self._prober is None:
            self._prober = asyncio.current_task()
            self._probed.clear()
            self._intake.pause()
            log.warning("no more messages are received until a batch succeeds", extra={"action": "paused"})
        if self._prober is asyncio.current_task():
            self._outages += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    def _go_on(self) -> None:
        """What all batches need works again: end the pause, if there is one."""
        self._outages = 0
        if self._prober is not None:
            log.info("a batch succeeded: messages are received again", extra={"action": "recovered"})
            self._prober = None
            self._probed.set()
            self._intake.resume()

    def _fail(self, lanes: Sequence[int], error: TransientError) -> float:
        """Record and log that these lanes' messages have to be tried again; in how many seconds."""
        before = max(self._failures.get(lane, 0) for lane in lanes)
        self._failures.update(dict.fromkeys(lanes, before + 1))
        self._failing_since.begin(lanes)
        alone = isinstance(error, BlockedError | SlotsWaitError)
        if alone:
            self._alone.update(lanes)
        else:
            before = max(before, self._outages)
            self._alone.difference_update(lanes)
            self._failure = str(error)
        wait = backoff(before + 1, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())
        self._metrics.batch_retries.labels("again").inc()
        log.log(
            # A slot that waits for hours gets a line more and more rarely; there may be many.
            logging.INFO if alone and (before + 1) & before else logging.WARNING,
            "%s: the messages of %s slots are kept and tried again in %.1f s%s",
            error,
            len(lanes),
            wait,
            "; the others go on" if alone else "",
            extra={"action": "batch_retry"},
        )
        return wait

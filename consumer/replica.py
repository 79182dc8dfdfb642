"""One replica of one shard: takes messages in, hands batches on, drains when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from consumer.batch import Batch, Batcher
from consumer.delivery import Delivery, check_slot
from consumer.errors import AgainError, NeverError
from consumer.handle import Handler
from consumer.intake import Intake
from consumer.metrics import Metrics
from consumer.sinks.base import Sink
from shardctl.shardconfig import ShardConfig

log = logging.getLogger(__name__)

KEPT_RETRY_SECONDS = 0.05  # a slot locked elsewhere is usually free within one batch
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 10.0


class Replica:
    def __init__(
        self,
        config: ShardConfig,
        sink: Sink,
        intake: Intake,
        handler: Handler,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        settings = config.consumer
        self._config, self._sink, self._intake, self._handler = config, sink, intake, handler
        self._metrics, self._clock = metrics, clock
        self._batcher = Batcher(settings.batch_max_rows, settings.batch_max_bytes, settings.batch_max_age_ms / 1000)
        self._work = asyncio.Event()
        self._stopping = False
        self._failures = 0

    @property
    def failing(self) -> bool:
        """True while the last batch failed and none has worked since."""
        return self._failures > 0

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """Queue messages, each read as far as can be without the database."""
        for delivery in deliveries:
            if delivery.fault is None:
                try:
                    self._sink.check(delivery)
                    check_slot(delivery, self._config)
                except NeverError as fault:
                    delivery.fault = fault
        self._batcher.add(deliveries, self._clock())
        self._work.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then finish what is in hand and hand back the rest, inside the drain timeout."""
        self._intake.start(self._deliver)
        workers = [asyncio.create_task(self._work_off()) for _ in range(self._config.consumer.concurrency)]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopped, *workers], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # a worker only ends by a bug: let it be seen
        finally:
            stopped.cancel()
            await self._drain(workers)

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        self._stopping = True
        await self._intake.stop_reading()
        waiting = self._batcher.drain()
        self._work.set()
        _, unfinished = await asyncio.wait(workers, timeout=self._config.consumer.drain_timeout.total_seconds())
        for worker in unfinished:
            worker.cancel()
        if not unfinished:
            # Only now that nothing is in hand: a message handed back earlier could be applied elsewhere before one of its slot
            # that is still under way here.
            await self._intake.hand_back([*waiting, *self._batcher.drain()])
        await self._intake.close()
        log.info("drained: %s messages handed back", len(waiting), extra={"action": "drained"})

    async def _work_off(self) -> None:
        while not self._stopping:
            batch = self._batcher.take(self._clock())
            if batch is None:
                await self._wait_for_work()
                continue
            await self._handle(batch)

    async def _wait_for_work(self) -> None:
        due = self._batcher.due_at(self._clock())
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), None if due is None else max(0.001, due - self._clock()))

    async def _handle(self, batch: Batch) -> None:
        try:
            with self._metrics.batch_seconds.time():
                handled = await self._handler.handle(batch)
        except AgainError as error:
            await self._back_off(batch, error)
            return
        except BaseException:
            self._batcher.back(batch, batch.deliveries, self._clock())
            raise
        if self._failures:
            log.info("working again: taking messages in", extra={"action": "recovered"})
            self._intake.resume()
        self._failures = 0
        if handled.kept:
            self._batcher.back(batch, handled.kept, self._clock() + KEPT_RETRY_SECONDS * random.uniform(0.5, 1.5))
        else:
            self._batcher.done(batch)
        self._work.set()

    async def _back_off(self, batch: Batch, error: AgainError) -> None:
        """Keep everything, in order, under lease; take nothing more in; try again later, without a restart."""
        self._failures += 1
        self._intake.pause()
        wait = random.uniform(0.5, 1.0) * min(
            LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
        )
        self._metrics.batch_retries.labels("again").inc()
        log.warning(
            "%s: the batch of %s messages is kept and tried again in %.1f s; nothing more is taken in until then",
            error,
            len(batch.deliveries),
            wait,
            extra={"action": "batch_retry"},
        )
        self._batcher.back(batch, batch.deliveries, self._clock() + wait)
        if not self._stopping:
            await asyncio.sleep(wait)
        self._work.set()

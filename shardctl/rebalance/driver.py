"""A run, driven on real time: barriers through Pub/Sub, copies in threads, a step every 20 ms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any

from sqlalchemy import Engine

from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import topic_of
from shardctl.rebalance import journal
from shardctl.rebalance.bases import Bases
from shardctl.rebalance.copying import row_copy, warm_up
from shardctl.rebalance.run import PARALLEL, Progress, Run
from shardctl.rebalance.stats import Stats
from shardctl.wire.message import Encoded

STEP_SECONDS = 0.02
GIVE_UP_AFTER_SECONDS = 20.0  # sooner than a barrier is published again


class BarrierPublisher:
    """Publishes in the order of each slot, through the client that producers use. A barrier that failed holds nothing up."""

    def __init__(self, fleet: Fleet, client: Any = None) -> None:
        from shardctl.publisher import connect

        self._fleet = fleet
        self._client = client or connect(GIVE_UP_AFTER_SECONDS, endpoint=fleet.topic.endpoint)

    def __call__(self, message: Encoded) -> Future[Any]:
        path = f"projects/{self._fleet.project}/topics/{topic_of(self._fleet, message.slot).id}"
        with suppress(RuntimeError):  # one that failed before has closed the client's queue of this ordering key
            self._client.resume_publish(path, message.ordering_key)
        sent: Future[Any] = self._client.publish(
            path, message.data, ordering_key=message.ordering_key, **message.attributes
        )
        return sent

    def close(self) -> None:
        self._client.stop()


def drive(
    fleet: Fleet,
    databases: Mapping[str, Engine],
    publish: Callable[[Encoded], Future[Any]],
    *,
    parallel: int = PARALLEL,
    onward: bool = True,
    hold: Callable[[], str] = str,
    tell: Callable[[Progress, Stats], None] = lambda *_: None,
    interrupted: Event | None = None,
) -> tuple[Progress, Stats]:
    """Step until the run has ended or `interrupted` is set: then copies that have begun are left undone, whole or not at all.

    Raises what `Run.step` raises.
    """
    stopping = interrupted or Event()
    rebalance = journal.find(fleet, databases)
    if rebalance is None:
        raise journal.JournalError("the rebalance isn't open in any database: `shardctl rebalance start` opens it.")
    warm_up(fleet, databases, parallel)
    bases = Bases(fleet, databases, rebalance, stopping.is_set)
    with (
        ThreadPoolExecutor(parallel, thread_name_prefix="copy") as pool,
        # Of their own, so that no pause waits for one. Half as many: all of these share a database's fifteen sessions, and
        # a thread that holds one at the destination waits for one at the source.
        ThreadPoolExecutor(max(1, parallel // 2), thread_name_prefix="base") as copies,
    ):
        run = Run(
            fleet,
            databases,
            rebalance=rebalance,
            publish=publish,
            copy=row_copy(fleet, stopping.is_set, bases.copying),
            clock=time.monotonic,
            pool=pool,
            parallel=parallel,
            onward=onward,
            hold=hold,
            bases=bases,
            copies=copies,
        )
        try:
            while True:
                progress = run.step(time.monotonic())
                tell(progress, run.tally)
                if progress.ended or stopping.is_set():
                    return progress, run.tally
                stopping.wait(STEP_SECONDS)
        except BaseException:
            stopping.set()
            raise

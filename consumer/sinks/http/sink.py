"""The sink of every type with an `http` backend.

`apply` runs inside the transaction that holds the fence and the inbox's new rows: no other replica makes the same call meanwhile,
and the rows commit only after the backend has accepted the call. If the commit fails after that, the call is repeated with the
same Idempotency-Key. The store may apply the same writes many times, and the backend is called once for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, RootTransaction

from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError, SlotsWaitError
from consumer.observability.metrics import Metrics
from consumer.sinks.base import check_key, json_object
from consumer.sinks.http.backend import Backend, NotNowError
from consumer.sinks.http.progress import Memory
from shardctl.fleet import backends
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard import changes
from shardctl.shard.changes import Change
from shardctl.supervision.background import start_thread

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_End = PermanentError | Delivery | None

# A failed call is repeated within its transaction only if that is soon. Otherwise the others commit without the write, and it
# comes again in a transaction of its own.
PATIENCE_SECONDS = 3.0
MARGIN_SECONDS = 5.0  # after the last moment at which calls end by themselves
CLOSE_SECONDS = 2.0


class HttpSink:
    """Raises CredentialsError where a Secret can't be used. Once `stopping` is true, nothing is waited for any more."""

    def __init__(
        self,
        kinds: Mapping[str, MessageType],
        consumer: Batching,
        secrets: Path,
        metrics: Metrics,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kinds, self._settings, self._consumer = kinds, backends.called(kinds), consumer
        self._backends = {
            name: Backend(name, settings, secrets, metrics, stopping) for name, settings in self._settings.items()
        }
        self._memory = Memory()
        self._calls = _Loop()
        self._here = threading.local()

    def check(self, delivery: Delivery) -> None:
        kind = self._kinds[delivery.message_type]
        check_key(delivery, kind)
        if kind.time_bucket:
            delivery.body = json_object(delivery)  # the slot follows from a field of it
        most = self._settings[delivery.message_type].max_body_bytes
        if len(delivery.message.data) > most:
            raise PermanentError(
                "too_large", f"the body has {len(delivery.message.data):,} bytes, and {most:,} are allowed"
            )

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """Call the backends for each write that isn't done yet: writes of a key in order, those of different keys at once.

        Raises SlotsWaitError while some may still succeed; DataFaultError if the others can't.
        """
        began = self._began(connection)
        until = {
            name: began + backends.window_seconds(self._consumer, backend) for name, backend in self._settings.items()
        }
        by_key: dict[tuple[int, str], list[Delivery]] = {}
        for write in writes:
            by_key.setdefault((write.slot, write.partition_key), []).append(write)
        work = _Work(until, began + PATIENCE_SECONDS)
        ends = self._calls.run(lambda: self._call_for_all(by_key.values(), work), self._most_seconds(began))
        waiting = [end for end in ends if isinstance(end, Delivery)]
        if waiting:
            raise SlotsWaitError(self._why(waiting), {write.lane for write in waiting})
        for end in ends:
            if isinstance(end, PermanentError):
                raise DataFaultError(end.reason, end.detail, key_waits=True)
        return 0

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        """No row that moves, unless the file says that the backend fills tables of the shard's database."""
        for write in writes:
            if self._kinds[write.message_type].slot_tables:
                yield changes.of_routing_key(write.slot, write.partition_key)

    def close(self) -> None:
        """Cancel the calls in flight. No call begins any more."""
        self._calls.close([backend.close for backend in self._backends.values()])

    async def _call_for_all(self, keys: Iterable[Sequence[Delivery]], work: _Work) -> list[_End]:
        return list(await asyncio.gather(*(self._in_order(writes, work) for writes in keys)))

    async def _in_order(self, writes: Sequence[Delivery], work: _Work) -> _End:
        """What ended the calls for one key: a fault, or a write that waits, without calls for the writes behind it; or None."""
        for write in writes:
            progress = self._memory.of(write, time.monotonic())
            try:
                backend, until = self._backends[write.message_type], work.until[write.message_type]
                await backend.settle(write, progress, until, work.patient_until)
            except NotNowError:
                return write
            if progress.fault:
                self._memory.forget(write)
                return progress.fault
        return None

    def _why(self, waiting: Sequence[Delivery]) -> str:
        """For one log line: which backends, what they answered last, and for how many keys."""
        counts = Counter(write.message_type for write in waiting)
        listed = (
            f"{backend.name} {backend.trouble or 'is still at work'} ({counts[name]} keys wait)"
            for name, backend in self._backends.items()
            if counts[name]
        )
        return "; ".join(listed)

    def _began(self, connection: Connection) -> float:
        """When this transaction first called `apply`: however often the store does so within it, the fence is held for one
        window.
        """
        transaction = connection.get_transaction()
        known: tuple[weakref.ref[RootTransaction], float] | None = getattr(self._here, "transaction", None)
        if transaction is not None and known is not None and known[0]() is transaction:
            return known[1]
        began = time.monotonic()
        if transaction is not None:
            self._here.transaction = (weakref.ref(transaction), began)
        return began

    def _most_seconds(self, began: float) -> float:
        """Seconds after which calls that should have ended by themselves are cancelled."""
        longest = max(backend.timeout for backend in self._settings.values()).total_seconds()
        last = max(backends.window_seconds(self._consumer, backend) for backend in self._settings.values())
        return max(0.0, began + last - time.monotonic()) + longest + MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class _Work:
    """When to stop, on the monotonic clock: no call of a type begins later, and no wait goes on longer."""

    until: Mapping[str, float]
    patient_until: float


class _Loop:
    """An event loop in a thread of its own, from the first call on."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting, self._closed = threading.Lock(), False

    def run(self, work: Callable[[], Coroutine[Any, Any, Result]], patience_seconds: float) -> Result:
        """Run to the end, from any thread. Raises SlotsWaitError if that is impossible or takes too long."""
        future = asyncio.run_coroutine_threadsafe(work(), self._started())
        try:
            return future.result(patience_seconds)
        except CancelledError as error:
            raise SlotsWaitError("this process ends") from error
        except TimeoutError as error:
            future.cancel()
            raise SlotsWaitError("calls of HTTP backends did not end in time") from error

    def close(self, last: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """Cancel what runs, then await the `last` calls. A second call has no effect."""
        with self._starting:
            self._closed = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*(call() for call in last), return_exceptions=True)

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), loop).result(CLOSE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_SECONDS)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._closed:
                raise SlotsWaitError("this process ends")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = start_thread("http", self._loop.run_forever, log)
            return self._loop

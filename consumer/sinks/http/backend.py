"""One backend: how many calls run at once, when it isn't called, and what its answers mean for writes.

A failure counts against a write only while the backend serves others: the failures in a row that open the breaker are taken back.
Since the breaker opens after no more failures than a write has attempts, an outage dead-letters no write.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from consumer.delivery import Delivery
from consumer.errors import PermanentError
from consumer.observability.metrics import Metrics
from consumer.sinks.http import answers, request
from consumer.sinks.http.answers import Meaning
from consumer.sinks.http.breaker import Breaker, Permit
from consumer.sinks.http.calls import Answer, Caller, CallError
from consumer.sinks.http.credentials import CredentialsError
from consumer.sinks.http.progress import Progress
from consumer.sinks.http.tokens import TokenError
from shardctl.fleet.settings.http import HttpBackend
from shardctl.supervision.backoff import backoff

log = logging.getLogger(__name__)

REFUSED, GIVEN_UP = "backend_refused", "backend_error"  # the reasons of writes that are dead-lettered or parked
LOOK_SECONDS = 0.2  # while a write waits for its next call, between two checks whether the process is to stop


class NotNowError(Exception):
    """No call for the write can be made before its time is over."""


class Backend:
    """In one event loop. Raises CredentialsError where its Secrets can't be used."""

    def __init__(
        self, message_type: str, settings: HttpBackend, secrets: Path, metrics: Metrics, stopping: Callable[[], bool]
    ) -> None:
        self._type, self._settings, self._metrics, self._stopping = message_type, settings, metrics, stopping
        self._caller = Caller(settings, secrets)
        self._grants_may_lack = settings.auth is not None and settings.auth.fetches_tokens
        self._breaker = Breaker(settings.breaker.failures, settings.breaker.open.total_seconds())
        self._free = asyncio.Semaphore(settings.concurrency)
        self._held_until = 0.0  # on the monotonic clock: what Retry-After asks for
        self._probed = asyncio.Event()  # set when a probe has ended
        self._row: Counter[int] = Counter()  # the failures since the last success, by write
        self._of_row: dict[int, Progress] = {}
        self.trouble = ""  # why the last call that failed did
        metrics.http_breaker_open.labels(message_type).set_function(lambda: float(not self._breaker.closed))
        if self._grants_may_lack:
            metrics.http_token_missing.labels(message_type).set_function(lambda: float(self._caller.token_missing))
        for outcome in Meaning:
            metrics.http_calls.labels(
                message_type, outcome
            )  # exists from the start: otherwise a rate would miss the first call
        metrics.http_retries.labels(message_type)

    @property
    def name(self) -> str:
        return f"the backend of type {self._type!r} ({self._caller.place})"

    async def settle(self, write: Delivery, progress: Progress, until: float, patient_until: float) -> None:
        """Call until the write is done or at fault for good. Raises NotNowError if the time is over before that.

        On the monotonic clock: after `until` no call begins, and one that has begun ends within the backend's timeout; after
        `patient_until` it waits only for other calls. Once the process is stopping, no call begins after that either.
        """
        while not progress.settled:
            await self._wait(max(progress.not_before, self._held_until), until, patient_until)
            async with _one_of(self._free, until):
                if (now := time.monotonic()) < self._held_until:
                    continue
                if self._stopping() and now > patient_until:
                    raise NotNowError
                permit = await self._permit(until)
                await self._once(write, progress, permit)

    async def close(self) -> None:
        await self._caller.close()

    async def _wait(self, moment: float, until: float, patient_until: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            if moment > min(until, patient_until) or self._stopping():
                raise NotNowError
            await asyncio.sleep(min(left, LOOK_SECONDS))
        if time.monotonic() > until:
            raise NotNowError

    async def _permit(self, until: float) -> Permit:
        while (permit := self._breaker.permit(time.monotonic())) is None:
            if not self._breaker.probing:
                raise NotNowError
            self._probed.clear()
            await _by(until, self._probed.wait())
        return permit

    async def _once(self, write: Delivery, progress: Progress, permit: Permit) -> None:
        if progress.calls:
            self._metrics.http_retries.labels(self._type).inc()
        progress.calls += 1
        judged = False
        try:
            self._learn(write, progress, permit, await self._call(write))
            judged = True
        finally:
            if not judged:
                self._breaker.give_back(permit, time.monotonic())
            if permit.probe:
                self._probed.set()

    async def _call(self, write: Delivery) -> Answer | CallError:
        began = time.perf_counter()
        try:
            result: Answer | CallError = await self._caller.call(write.message.data, request.headers(write))
        except CallError as error:
            result = error
        except (CredentialsError, TokenError) as error:
            self.trouble = str(error)
            raise NotNowError from error
        except Exception as error:  # noqa: BLE001 - a bug must not stop the shard because of one write
            last = traceback.extract_tb(error.__traceback__)[-1]  # not its text, which may hold a header
            place = f"{last.filename}:{last.lineno}"
            log.error("a call of %s failed by a bug: %s at %s", self.name, type(error).__name__, place)  # noqa: TRY400
            result = CallError(Meaning.FAILED, f"failed by a bug: {type(error).__name__}", sent=True)
        self._metrics.http_call_seconds.observe(time.perf_counter() - began)
        return result

    def _learn(self, write: Delivery, progress: Progress, permit: Permit, result: Answer | CallError) -> None:
        if isinstance(result, CallError):
            progress.unsure = progress.unsure or result.sent
            self._count(result.outcome)
            self._failed(write, progress, permit, str(result), 0.0)
            return
        meaning = answers.meaning(result.status, unsure=progress.unsure, grants_may_lack=self._grants_may_lack)
        self._count(meaning)
        text = f"answered {answers.phrase(result.status)}"
        wait = answers.retry_after(result.retry_after, datetime.now(UTC))
        match meaning:
            case Meaning.OK:
                progress.done = True
                self._well(permit)
            case Meaning.REFUSED:
                progress.fault = PermanentError(REFUSED, f"{self.name} {text}")
                self._well(permit)
            case Meaning.THROTTLED:
                self.trouble = text
                self._breaker.give_back(permit, time.monotonic())
                self._hold(progress, wait or self._pause(max(1, progress.failures)))
            case Meaning.FAILED:
                progress.unsure = progress.unsure or result.status >= 500
                self._failed(write, progress, permit, text, wait)

    def _well(self, permit: Permit) -> None:
        was_closed = self._breaker.closed
        self._breaker.succeeded(permit)
        if self._breaker.closed:
            self._row.clear()
            self._of_row.clear()
            if not was_closed:
                log.info("%s answers again", self.name, extra={"action": "breaker_closed", "message_type": self._type})

    def _failed(self, write: Delivery, progress: Progress, permit: Permit, text: str, wait: float) -> None:
        self.trouble = text
        was_closed = self._breaker.closed
        progress.failures += 1
        self._row[id(progress)] += 1
        self._of_row[id(progress)] = progress
        self._breaker.failed(permit, time.monotonic())
        if not self._breaker.closed:
            self._take_back()
            if was_closed:
                log.warning(
                    "%s %s, and isn't called for %g s: its writes are kept, and then one call probes it",
                    self.name,
                    text,
                    self._settings.breaker.open.total_seconds(),
                    extra={"action": "breaker_opened", "message_type": self._type},
                )
        if progress.failures >= self._settings.attempts:
            detail = f"{self.name} {text}; {progress.failures} calls failed while others succeeded"
            progress.fault = PermanentError(GIVEN_UP, detail)
            return
        pause = self._pause(max(1, progress.failures))
        progress.not_before = time.monotonic() + pause
        if wait:
            self._hold(progress, wait)
        log.debug(
            "%s %s: called again in %.1f s", self.name, text, max(wait, pause), extra={"message_id": write.message_id}
        )

    def _take_back(self) -> None:
        """The backend is down: its failures in a row are no write's fault."""
        for key, progress in self._of_row.items():
            progress.failures -= self._row[key]
        self._row.clear()
        self._of_row.clear()

    def _hold(self, progress: Progress, seconds: float) -> None:
        """Make no call for any write for so long: the backend asks for it."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)
        progress.not_before = max(progress.not_before, self._held_until)

    def _pause(self, failures: int) -> float:
        first, last = self._settings.retry_minimum.total_seconds(), self._settings.retry_maximum.total_seconds()
        return backoff(failures, first, last, random.random())

    def _count(self, outcome: str) -> None:
        self._metrics.http_calls.labels(self._type, outcome).inc()


@asynccontextmanager
async def _one_of(free: asyncio.Semaphore, until: float) -> AsyncIterator[None]:
    """A place among the calls that run at once. Raises NotNowError if none is free by then."""
    await _by(until, free.acquire())
    try:
        yield
    finally:
        free.release()


async def _by(until: float, wait: Coroutine[object, object, bool]) -> None:
    try:
        async with asyncio.timeout_at(until):  # the loop's clock is the monotonic one
            await wait
    except TimeoutError:
        raise NotNowError from None

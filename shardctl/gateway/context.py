"""What every request of a gateway shares, and whether it is ready for more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from starlette.types import Scope

from shardctl.fleet.settings.gateway import OPEN
from shardctl.fleet.spec import Fleet
from shardctl.gateway.auth import Authenticator, Caller
from shardctl.gateway.claims import Claim, Claims
from shardctl.gateway.encoding import Encoder, MessageKind
from shardctl.gateway.metrics import Metrics
from shardctl.gateway.problems import Problem
from shardctl.gateway.publishing import Outbox
from shardctl.gateway.publishing import Topics as Publishing
from shardctl.gateway.pubsub import NotTakenError, PublishRefusedError
from shardctl.gateway.requests import Headers
from shardctl.supervision.trouble import Trouble

if TYPE_CHECKING:
    from shardctl.gateway.outcomes import Outcomes

PROBE_PAUSE_SECONDS = 5.0
REACHED_SECONDS = 15.0  # without an answer from Pub/Sub for so long, a gateway isn't ready

log = logging.getLogger(__name__)


class UnreachableError(Exception):
    """Pub/Sub doesn't answer, or not to this gateway."""


class Topics(Publishing, Protocol):
    async def probe(self) -> str | None: ...


class GatewayContext:
    def __init__(
        self,
        fleet: Fleet,
        topics: Topics,
        authenticator: Authenticator,
        *,
        database_urls: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.fleet, self.authenticator, self.clock, self.now = fleet, authenticator, clock, now
        self.settings = fleet.gateway or OPEN
        self.encoder = Encoder(fleet)
        self.claims = Claims()
        self.metrics = Metrics(fleet.message_types)
        self.outbox = Outbox(
            topics,
            self.metrics,
            max_writes=self.settings.max_in_flight_writes,
            max_bytes=self.settings.max_in_flight_bytes,
            give_up_after_seconds=self.settings.publish_timeout.total_seconds(),
            clock=clock,
        )
        self.stopping = asyncio.Event()
        self.outcomes = _outcomes(self, database_urls or {})
        self._reads: set[asyncio.Timeout] = set()
        self._topics = topics
        self._reached: float | None = None
        self._unreachable: str | None = "Pub/Sub hasn't answered yet"
        self.metrics.in_flight.set_function(lambda: self.outbox.writes)
        self.metrics.in_flight_bytes.set_function(lambda: self.outbox.bytes)
        self.metrics.keys_failing.set_function(lambda: float(self.authenticator.failing))
        self.metrics.ready.set_function(lambda: float(self.why_not_ready() is None))

    async def caller(self, scope: Scope, headers: Headers) -> Caller:
        """Raises Problem."""
        client = scope.get("client")
        return await self.authenticator.caller(headers.authorization, client[0] if client else "")

    def kind(self, name: str) -> MessageKind:
        """Raises Problem."""
        kind = self.encoder.kinds.get(name)
        if kind is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no message type {name!r:.60} in this fleet")
        return kind

    def check_leave(self, caller: Caller, kind: MessageKind) -> None:
        """Raises Problem."""
        if not caller.may_write(kind.name):
            raise Problem(HTTPStatus.FORBIDDEN, f"{caller.name} may not write type {kind.name}")

    def check_claim(self, claim: Claim | None) -> None:
        """Raises Problem where the idempotency key stands for another write. The last check before the write is sent."""
        if claim is not None and not self.claims.take(claim):
            raise Problem.key_reused(claim)

    def not_taken(self, claim: Claim | None, error: NotTakenError) -> None:
        """Release the key of a write that certainly hasn't reached Pub/Sub."""
        if claim is not None and (isinstance(error, PublishRefusedError) or not error.sent):
            self.claims.give_up(claim)

    def why_not_ready(self) -> str | None:
        if self.stopping.is_set():
            return "stopping"
        last = max(self._reached or -REACHED_SECONDS, self.outbox.last_success or -REACHED_SECONDS)
        return None if self.clock() - last < REACHED_SECONDS else self._unreachable

    def stop(self) -> None:
        """Accept no more: batches aren't read further, and the lines that were read are finished."""
        self.stopping.set()
        for limit in self._reads:
            if not limit.expired():  # its reader may not have run since; it could not be set any more
                limit.reschedule(asyncio.get_running_loop().time())

    @contextmanager
    def reading(self, seconds: float) -> Iterator[asyncio.Timeout]:
        """A time limit for reading a request; it ends at once when the gateway stops."""
        limit = asyncio.timeout(0 if self.stopping.is_set() else seconds)
        self._reads.add(limit)
        try:
            yield limit
        finally:
            self._reads.discard(limit)

    async def watch(self) -> None:
        """Probe Pub/Sub periodically, unless recent writes show that it works."""
        trouble = Trouble("Pub/Sub", log, "unreachable", self.clock)
        while True:
            written = self.outbox.last_success
            if written is None or self.clock() - written > PROBE_PAUSE_SECONDS:
                why_not = await self._topics.probe()
                if why_not is None:
                    self._reached = self.clock()
                    self._unreachable = "Pub/Sub hasn't answered for a while"
                    trouble.over("answers again", "reachable")
                else:
                    self._unreachable = why_not
                    trouble.met(UnreachableError(why_not), "writes will be answered with 503")
            await asyncio.sleep(PROBE_PAUSE_SECONDS if self._reached is not None else 1)


def _outcomes(context: GatewayContext, urls: Mapping[str, str]) -> Outcomes | None:
    """None where the file doesn't ask for them: then no database's code is loaded."""
    settings = context.settings.outcomes
    if settings is None:
        return None
    from shardctl.gateway.outcomes import Outcomes

    return Outcomes(context.fleet, settings, urls, context.metrics, context.stopping)

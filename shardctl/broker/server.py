"""Starting and stopping the broker."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Self

import grpc

from shardctl.broker import departures
from shardctl.broker.faults import NONE, Faults, Injector
from shardctl.broker.handlers import handlers
from shardctl.broker.publishing import MAX_REQUEST_BYTES
from shardctl.broker.push import Pushers
from shardctl.broker.registry import Registry
from shardctl.broker.service import Service
from shardctl.broker.stream import Clock, Waiters
from shardctl.broker.tokens import KeysServer, Signer
from shardctl.errors import UsageError
from shardctl.serving.limits import Limits
from shardctl.serving.server import Server as HttpServer
from shardctl.serving.sockets import BACKLOG, bind, shown
from shardctl.supervision.background import Background
from shardctl.supervision.signals import on_end_signals

MAX_RECEIVED_BYTES = 2 * MAX_REQUEST_BYTES  # a larger request isn't even read
MAX_CALLS = 1_000  # of one connection at once: its client holds further ones back
MAX_WAITING_CALLS = 10 * MAX_CALLS
"""Calls of all connections that the loop hasn't begun. Beyond it, by default 1,000, gRPC cancels calls of any client."""

SETTLING_TURNS = 100
"""Of the loop, once all calls have ended. gRPC's tasks need some, and it logs a traceback for each that is cancelled first."""

TICK_SECONDS = 0.05
TRIM_SECONDS = 5.0
LAST_RETRY_SECONDS = 1.0  # of an upkeep that fails: until it succeeds no lease expires

REST_LIMITS = Limits(connections=1_024)

_log = logging.getLogger(__name__)


class AddressInUseError(UsageError):
    """The broker can't listen at the given address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"The broker can't listen on {host}:{port}. Free the port, or take any with --port 0.")
        self.host = host
        self.port = port


class Broker:
    """`async with Broker() as broker:` listens on a free loopback port; `broker.host` is the PUBSUB_EMULATOR_HOST.

    Everything is in memory and gone at the end. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        rest_port: int | None = None,
        keys_port: int | None = None,
        faults: Faults = NONE,
        clock: Clock = time.time,
    ) -> None:
        self.address = address
        self.port = port
        self.rest_port = rest_port  # of the REST API; None for no such API, and the one that 0 took once it has started
        self.keys_url = ""  # where the keys of its pushes' tokens are published; nowhere without a `keys_port`
        self._keys_port = keys_port
        self._keys: KeysServer | None = None
        self.registry = Registry(Injector(faults))
        self._clock = clock
        self._waiters = Waiters()
        self._signer = Signer()
        self._pushers = Pushers(self.registry, self._waiters, clock, self._signer)
        self._service = Service(self.registry, self._waiters, clock)
        self._server: grpc.aio.Server | None = None
        self._rest: HttpServer | None = None
        self._serving_rest: asyncio.Task[None] | None = None
        self._beside = Background(_log)

    @property
    def host(self) -> str:
        """address:port."""
        return f"{self.address}:{self.port}"

    @property
    def rest_url(self) -> str:
        """The REST API; empty where it isn't served."""
        return "" if self.rest_port is None else f"http://{shown(self.address)}:{self.rest_port}"

    def set_faults(self, faults: Faults) -> None:
        self.registry.injector.set(faults)

    async def start(self) -> None:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", MAX_CALLS),
                ("grpc.http.overload_protection", 0),  # it refuses calls before its client can know of the limit
                ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_WAITING_CALLS),
                ("grpc.so_reuseport", 0),
            ]
        )
        departures.quieten()
        server.add_generic_rpc_handlers(handlers(self._service))
        try:
            self.port = server.add_insecure_port(self.host)
        except RuntimeError as error:
            raise AddressInUseError(self.address, self.port) from error
        if self._keys_port is not None:
            try:
                self._keys = KeysServer(self._signer, self.address, self._keys_port)
            except OSError as error:
                raise AddressInUseError(self.address, self._keys_port) from error
            self.keys_url = self._keys.url
        if self.rest_port is not None:
            self._serve_rest(self.rest_port)
        await server.start()
        self._server = server
        self._beside.keep("the broker's upkeep", self._tick, TICK_SECONDS, LAST_RETRY_SECONDS)

    def _serve_rest(self, port: int) -> None:
        from shardctl.broker.rest.app import Application

        listening = bind(self.address, port, "the broker's REST API", "Free the port, or take any with --rest-port 0.")
        listening.listen(BACKLOG)
        self.rest_port = listening.getsockname()[1]
        self._rest = HttpServer(Application(self._service), REST_LIMITS)
        self._serving_rest = self._beside.once("the REST API", self._rest.serve_on(listening))

    async def stop(self, grace_seconds: float = 0.2) -> None:
        if self._rest is not None and self._serving_rest is not None:
            self._rest.stop(at_once=True)
            await self._serving_rest
        await self._beside.close()
        await self._pushers.stop()
        if self._keys is not None:
            self._keys.close()
        if self._server is not None:
            await self._server.stop(grace_seconds)
            for _ in range(SETTLING_TURNS):
                await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _tick(self) -> None:
        """Ends leases and back-offs, and wakes waiting readers, including one whose share grew while another was writing."""
        trimmed = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            self.registry.tick(now)
            if now - trimmed >= TRIM_SECONDS:
                trimmed = now
                self.registry.trim(now)
            self._pushers.settle()
            self._waiters.wake_all()


async def serve(
    address: str = "127.0.0.1",
    port: int = 8085,
    *,
    rest_port: int | None = None,
    keys_port: int | None = None,
    faults: Faults = NONE,
) -> None:
    """Serves until SIGINT or SIGTERM; says on stderr when it is ready, and where."""
    stopping = asyncio.Event()
    on_end_signals(stopping.set)
    async with Broker(address=address, port=port, rest_port=rest_port, keys_port=keys_port, faults=faults) as broker:
        if broker.rest_url:
            print(f"REST API: {broker.rest_url}", file=sys.stderr, flush=True)
        if broker.keys_url:
            print(f"tokens of pushes are signed with the key at {broker.keys_url}", file=sys.stderr, flush=True)
        print(f"broker ready: PUBSUB_EMULATOR_HOST={broker.host}", file=sys.stderr, flush=True)
        await stopping.wait()

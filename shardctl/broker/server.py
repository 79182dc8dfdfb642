"""Starting and stopping the broker."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Self

import grpc

from shardctl.broker.faults import NONE, Faults, Injector
from shardctl.broker.push import Pushers
from shardctl.broker.registry import Registry
from shardctl.broker.service import Service
from shardctl.broker.stream import Clock, Waiters
from shardctl.broker.tokens import KeysServer, Signer
from shardctl.errors import UsageError
from shardctl.supervision.background import Background
from shardctl.supervision.signals import on_end_signals

TICK_SECONDS = 0.05
TRIM_SECONDS = 5.0
LAST_RETRY_SECONDS = 1.0  # of an upkeep that fails: until it succeeds no lease expires

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
        keys_port: int | None = None,
        faults: Faults = NONE,
        clock: Clock = time.time,
    ) -> None:
        self.address = address
        self.port = port
        self.keys_url = ""  # where the keys of its pushes' tokens are published; nowhere without a `keys_port`
        self._keys_port = keys_port
        self._keys: KeysServer | None = None
        self.registry = Registry(Injector(faults))
        self._clock = clock
        self._waiters = Waiters()
        self._signer = Signer()
        self._pushers = Pushers(self.registry, self._waiters, clock, self._signer)
        self._server: grpc.aio.Server | None = None
        self._beside = Background(_log)

    @property
    def host(self) -> str:
        """address:port."""
        return f"{self.address}:{self.port}"

    def set_faults(self, faults: Faults) -> None:
        self.registry.injector.set(faults)

    async def start(self) -> None:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers(Service(self.registry, self._waiters, self._clock).handlers())
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
        await server.start()
        self._server = server
        self._beside.keep("the broker's upkeep", self._tick, TICK_SECONDS, LAST_RETRY_SECONDS)

    async def stop(self, grace_seconds: float = 0.2) -> None:
        await self._beside.close()
        await self._pushers.stop()
        if self._keys is not None:
            self._keys.close()
        if self._server is not None:
            await self._server.stop(grace_seconds)

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
    address: str = "127.0.0.1", port: int = 8085, *, keys_port: int | None = None, faults: Faults = NONE
) -> None:
    """Serves until SIGINT or SIGTERM; says on stderr when it is ready, and where."""
    stopping = asyncio.Event()
    on_end_signals(stopping.set)
    async with Broker(address=address, port=port, keys_port=keys_port, faults=faults) as broker:
        if broker.keys_url:
            print(f"tokens of pushes are signed with the key at {broker.keys_url}", file=sys.stderr, flush=True)
        print(f"broker ready: PUBSUB_EMULATOR_HOST={broker.host}", file=sys.stderr, flush=True)
        await stopping.wait()

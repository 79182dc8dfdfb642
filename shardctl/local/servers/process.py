"""One server process: in a session of its own, logged to a file, pinged in its own protocol, and ended with this process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from shardctl.atomicfile import PRIVATE
from shardctl.errors import ShardctlError
from shardctl.local.servers.family import alive, children
from shardctl.local.servers.watchdog import Guard

HOST = "127.0.0.1"
PORT_TRIES = 5
POLL_SECONDS = 0.01
LOG_TAIL_LINES = 12
# Below the ports Linux and macOS hand to outgoing connections: a restarted server finds its own port still free.
FREE_PORTS = range(15_000, 30_000)
_random = random.SystemRandom()  # a test that seeds `random` must not make two processes try the same ports


class ServerError(ShardctlError):
    """A local server failed."""


class BinaryMissingError(ServerError):
    """A program or a driver that the local fleet needs isn't installed."""

    def __init__(self, program: str, fix: str) -> None:
        super().__init__(f"{program} not found: {fix}")
        self.program = program


class StartError(ServerError):
    """The server didn't come up. `log` holds the last lines it wrote."""

    def __init__(self, server: Server, why: str, log: str) -> None:
        shown = f"; the end of {server.log_file}:\n{log}" if log else f" ({server.log_file} is empty)"
        super().__init__(f"{server.program} on {HOST}:{server.port} with data in {server.data_dir} {why}{shown}")
        self.log = log


class Server(ABC):
    """A server on loopback that lives no longer than this object and this process.

    `data_dir` holds its data and `server.log`. Port 0 takes a free one, which is settled when `start` returns and
    kept from then on, so that a restarted server is found where it was.
    """

    program: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    last_signal: ClassVar[signal.Signals] = signal.SIGKILL  # when we are gone and nobody is left to wait for it

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.data_dir = data_dir.absolute()
        self.log_file = self.data_dir / "server.log"
        self.port = port or free_port()
        self._port_is_ours = port == 0
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._log_start = 0

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs on disk; the data of an earlier run is kept."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The program and its arguments, in the foreground, at `self.port`."""

    @abstractmethod
    def _ping(self) -> bool:
        """Whether this very server, not another one at the same port, answers requests."""

    def _spawn_options(self) -> dict[str, Any]:
        return {}

    def _input(self) -> str:
        """What the server reads from its standard input: a command line is for every user of the machine to read."""
        return ""

    @property
    def running(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        self._release()
        return False

    @property
    def pid(self) -> int:
        """The main process, also once it has ended."""
        if self._process is None:
            raise ServerError(f"{self.program} with data in {self.data_dir} has not been started: call start() first")
        return self._process.pid

    def start(self, timeout_seconds: float = 30.0) -> Self:
        """Up and answering when it returns; nothing to do where it already is."""
        if self.running:
            return self
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                self.data_dir.mkdir(parents=True, exist_ok=True)
                self._prepare()
                self._spawn()
            except OSError as fault:
                self._end()
                raise StartError(self, f"could not be started: {fault}", "") from fault
            try:
                self.wait_ready(timeout_seconds)
            except BaseException as fault:
                self.kill()
                taken = isinstance(fault, StartError) and "Address already in use" in fault.log
                if not (taken and self._port_is_ours and tries_left):
                    raise
                self.port = free_port()  # another process took it between our check and the server's bind
            else:
                self._port_is_ours = False
                return self
        raise AssertionError("unreachable")

    def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Returns once the server answers; raises StartError when it has ended or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while self.running:
            if self._ping():
                return
            if time.monotonic() > deadline:
                raise StartError(self, f"did not answer within {timeout_seconds:g} s", self.log_tail())
            time.sleep(POLL_SECONDS)
        raise StartError(self, "has ended" if self._process else "was not started", self.log_tail())

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """An orderly end; a server that takes longer than `timeout_seconds` is killed."""
        self._stop_by(self.stop_signal, timeout_seconds)

    def kill(self) -> None:
        """SIGKILL to every process of the server, as when its machine's power goes. None is left when it returns."""
        if self.running:
            family = self._freeze()
            for pid in family:
                _signal(pid, signal.SIGKILL)
            self._end()
            # The children are init's to reap now. Until they are gone they hold what a new server needs.
            wait_until(lambda: not any(alive(pid) for pid in family), timeout_seconds=10)
        self._release()

    def restart(self) -> None:
        """Stopped and started at the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze every process of the server: connections stay open and nothing answers."""
        if self.running:
            self._freeze()

    def resume(self) -> None:
        if self.running:
            for pid in reversed(self._family()):
                _signal(pid, signal.SIGCONT)

    def log_tail(self) -> str:
        """The last lines since the latest start."""
        with contextlib.suppress(OSError), self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _spawn(self) -> None:
        self._guard = Guard(self.last_signal)
        with open(self.log_file, "ab", opener=_for_us_alone) as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",  # an unprivileged server may not be able to stand in ours
                start_new_session=True,  # Ctrl-C is for us: we then stop the servers in order
                **self._spawn_options(),
            )
        self._guard.watch(self._process.pid)
        if (pipe := self._process.stdin) is not None:
            with contextlib.suppress(BrokenPipeError), pipe:  # one that has ended already says why in its log
                pipe.write(self._input().encode())

    def _stop_by(self, how: signal.Signals, timeout_seconds: float) -> None:
        if self.running and self._process is not None:
            self.resume()  # a paused process would never read the signal
            self._process.send_signal(how)
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def _freeze(self) -> list[int]:
        """Stops the main process first, so that no child is born behind the list that is returned."""
        _signal(self.pid, signal.SIGSTOP)
        family = self._family()
        for pid in family[1:]:
            _signal(pid, signal.SIGSTOP)
        return family

    def _family(self) -> list[int]:
        return [self.pid, *children(self.pid)]

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        """Called wherever an end is seen: from then on the process id may be another process's."""
        if self._guard is not None:
            self._guard.release()
            self._guard = None


def free_port() -> int:
    """A port that is free at this moment; another process may still bind it first."""
    for port in _random.sample(FREE_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no free port on {HOST} from {FREE_PORTS.start} to {FREE_PORTS.stop}: end some servers there")


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _for_us_alone(path: str, flags: int) -> int:
    """A log may quote a password. One that is there already is closed to others as well."""
    handle = os.open(path, flags, PRIVATE)
    os.fchmod(handle, PRIVATE)
    return handle


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

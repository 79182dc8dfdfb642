"""Attacks on an HTTP server of ours by a stranger who reaches its port, and what they cost it.

An attack goes on until the server hangs up, until it has sent what it wants, or for `SECONDS`. Meanwhile somebody else asks for
a page, as a probe does, and the server's resident memory is read from /proc.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024**2
SECONDS = 15.0
AT_LEAST_SECONDS = 3.0  # a client that is hung up on comes back
PROBE_SECONDS = 20.0  # a busy machine is given so long; what is measured is reported


@dataclass(frozen=True)
class Target:
    """A server under attack: `page` is what a probe asks for, `post` takes bodies."""

    pid: int
    port: int
    page: str
    post: str


@dataclass
class Cost:
    grown_bytes: int = 0
    answers_seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    threads: int = 0

    def __str__(self) -> str:
        slowest = max(self.answers_seconds, default=float("nan"))
        return (
            f"RSS grew by {self.grown_bytes / MIB:.0f} MiB, {len(self.answers_seconds)} answers, the slowest in "
            f"{slowest:.2f} s, at most {self.threads} threads, failures: {self.failures[:3]}"
        )


def cost_of(target: Target, attack: Callable[[Target], Awaitable[None]]) -> Cost:
    """Attack, and report what it cost."""
    for _ in range(20):
        _probe(target)
    cost = Cost()
    end = time.monotonic() + AT_LEAST_SECONDS
    with _watched(target, cost):
        while True:
            asyncio.run(attack(target))
            if time.monotonic() > end and cost.answers_seconds:
                return cost
            assert not cost.failures, cost


@contextmanager
def _watched(target, cost):
    before, ended = _rss(target.pid), threading.Event()

    def watch():
        while not ended.wait(0.05):
            cost.grown_bytes = max(cost.grown_bytes, _rss(target.pid) - before)
            cost.threads = max(cost.threads, len(list(Path(f"/proc/{target.pid}/task").iterdir())))

    def probe():
        while not ended.wait(0.2):
            begun = time.monotonic()
            try:
                _probe(target)
            except (OSError, http.client.HTTPException) as error:
                cost.failures.append(repr(error))
            else:
                cost.answers_seconds.append(time.monotonic() - begun)

    threads = [threading.Thread(target=work) for work in (watch, probe)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _probe(target: Target) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", target.page)
        connection.getresponse().read()
    finally:
        connection.close()


# --- attacks ----------------------------------------------------------------------------------------------------------


async def _send(target: Target, first: bytes, again: bytes, size: int) -> None:
    """`first`, and `again` until `size` bytes are sent."""
    try:
        async with asyncio.timeout(SECONDS):
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.write(first)
            for _ in range(size // len(again)):
                writer.write(again)
                await writer.drain()
            await asyncio.sleep(SECONDS)
    except (OSError, TimeoutError):
        return
    finally:
        if "writer" in locals():
            writer.transport.abort()


async def _at_once(count: int, attack: Callable[[int], Awaitable[None]]) -> None:
    await asyncio.gather(*(attack(number) for number in range(count)))


async def headers_without_end(target: Target) -> None:
    line = b"x-some-name: " + b"v" * 1_000 + b"\r\n"
    await _send(target, f"GET {target.page} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode(), line * 64, 400 * MIB)


async def small_headers_without_end(target: Target) -> None:
    await _send(target, f"GET {target.page} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode(), b"a:b\r\n" * 10_000, 100 * MIB)


async def a_header_without_end(target: Target) -> None:
    await _send(target, f"GET {target.page} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-some: ".encode(), b"v" * 65_536, 400 * MIB)


async def a_path_without_end(target: Target) -> None:
    await _send(target, b"GET /", b"a" * 65_536, 400 * MIB)


async def trailers_without_end(target: Target) -> None:
    begin = _post(target, b"Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n"
    await _send(target, begin, (b"x-some-name: " + b"v" * 1_000 + b"\r\n") * 64, 400 * MIB)


async def tiny_chunks_without_end(target: Target) -> None:
    chunk = b"1;" + b"e" * 1_000 + b"\r\n \r\n"
    begin = _post(target, b"Transfer-Encoding: chunked")
    await _at_once(50, lambda _: _send(target, begin, chunk * 64, 10 * MIB))


async def extensions_without_end(target: Target) -> None:
    await _send(target, _post(target, b"Transfer-Encoding: chunked") + b"1;", b"e" * 65_536, 400 * MIB)


async def idle_connections(target: Target) -> None:
    writers = []
    try:
        async with asyncio.timeout(4 * SECONDS):
            for _ in range(10_000):
                try:
                    writers.append((await asyncio.open_connection("127.0.0.1", target.port, limit=16))[1])
                except OSError:  # the server takes no more
                    await asyncio.sleep(0.01)
            await asyncio.sleep(2)
    except TimeoutError:
        pass
    for writer in writers:
        writer.transport.abort()


async def slow_heads(target: Target) -> None:
    async def slow_head(_):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
        except OSError:
            return
        try:
            writer.write(f"GET {target.page} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
            for _ in range(int(SECONDS)):
                writer.write(b"x-some: " + b"v" * 1_000 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(1)
        except OSError:
            return
        finally:
            writer.transport.abort()

    await _at_once(2_000, slow_head)


async def slow_bodies(target: Target) -> None:
    begin = _post(target, b"Content-Length: 1048576")
    await _at_once(1_000, lambda _: _send(target, begin + b"{" + b" " * 65_535, b" " * 65_536, MIB - 2 * 65_536))


async def slow_lines(target: Target) -> None:
    begin = _post(target, b"Content-Length: 1048576", b"application/x-ndjson", path="/v1/writes")
    await _at_once(1_000, lambda _: _send(target, begin + b"{" + b" " * 65_535, b" " * 65_536, MIB - 2 * 65_536))


async def answers_not_read(target: Target) -> None:
    ask = f"GET {target.page} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    await _at_once(200, lambda _: _send(target, b"", ask * 1_000, 2 * MIB))


def _post(target: Target, *headers: bytes, path: str = "") -> bytes:
    length, kind = headers if len(headers) == 2 else (*headers, b"application/json")
    line = f"POST {path or target.post} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    return line + b"Content-Type: " + kind + b"\r\n" + length + b"\r\n\r\n"


ATTACKS = (
    headers_without_end,
    small_headers_without_end,
    a_header_without_end,
    a_path_without_end,
    trailers_without_end,
    tiny_chunks_without_end,
    extensions_without_end,
    idle_connections,
    slow_heads,
    slow_bodies,
    slow_lines,
    answers_not_read,
)

"""How many writes one gateway process accepts, beside a bare app on the same server that only answers 202.

    python -m bench.gateway [--json] [--connections N] [--seconds S]

`bare` is a Starlette app under the same uvicorn, uvloop and httptools; it reads the body and answers. `gateway` is the command,
publishing into the embedded broker, which is a process of its own; a write counts when its 202 has come. The load comes from
here. At the peak, keep-alive connections each send the next request when the last is answered; for batches, they send streams of
JSON lines. At half of its own peak, a server gets requests at a steady rate whether or not it has answered, and an answer's time
counts from when its request was due. Bare and gateway take turns, so that a machine that slows down slows both; processor time a
write depends less on what else the machine does than writes a second. A publish request carries one slot's writes, so how many
slots there are decides how many requests it takes: single writes are measured with 1,024 slots, the default, and with 64.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grpc
import psutil
import uvloop
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from rich.console import Console
from rich.table import Table

from bench.meter import Processors

REQUESTS = 20_000  # different ones, sent round and round
WARM_SECONDS = 1.0
TICK_SECONDS = 0.001
BATCH_LINES, BATCH_CONNECTIONS = 50_000, 2
TURNS = 2
FLEET = """
fleet: bench
project: bench-project
image: gateway:bench
topic: {topic}
routing: {{slot_bits: {bits}}}
message_types:
  order:
    table: orders
    key: order_id
    columns: {{order_id: text, customer_id: text, status: text, amount: decimal, placed_at: timestamp}}
gateway: {{auth: none}}
shards:
  - {{name: s0, slots: 0-{middle}}}
  - {{name: s1, slots: {after}-{last}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--connections", type=int, default=1_024)
    parser.add_argument("--seconds", type=float, default=4.0, help="each measurement")
    parser.add_argument("--bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        _serve_bare(options.bare)
        return
    result = _measured(options.connections, options.seconds)
    if options.json:
        print(json.dumps(result))
        return
    goals = {
        "share_of_bare": ">= 0.50",
        "share_of_bare_64_slots": ">= 0.50",
        "batch_times_bare": ">= 10",
        "half_p99_ms": "<= 100",
    }
    table = Table("figure", "measured", "goal")
    for name, value in result.items():
        table.add_row(name, f"{value:,}", goals.get(name, ""))
    Console().print(table)


def _measured(connections: int, seconds: float) -> dict[str, float]:
    say = Console(stderr=True).print
    requests, batch = _requests(), _batch()
    bare, many, few, batches, half, bare_half = [], [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, ExitStack() as stack:
        broker = stack.enter_context(_broker())
        app = stack.enter_context(_bare())
        default = stack.enter_context(_gateway(Path(folder), broker, 10))
        small = stack.enter_context(_gateway(Path(folder), broker, 6))
        begun = Processors()
        for turn in range(TURNS):
            say(f"turn {turn + 1} of {TURNS} …")
            bare.append(_load(app, requests, connections, seconds))
            many.append(_load(default, requests, connections, seconds))
            few.append(_load(small, requests, connections, seconds))
            batches.append(_load_batches(default, batch, seconds))
            half.append(_load_steadily(default, requests, connections, seconds, many[-1].rate / 2))
            bare_half.append(_load_steadily(app, requests, connections, seconds, bare[-1].rate / 2))
        elsewhere = begun.elsewhere(Processors())
        idle, idle_bare = (_load(server, requests, 1, 1.0) for server in (default, app))
        rss = default[1].memory_info().rss / 1024**2
    bare_rate = _middle(bare, "rate")
    return {
        "gateway_writes_per_s": round(_middle(many, "rate")),
        "gateway_writes_per_s_64_slots": round(_middle(few, "rate")),
        "gateway_batch_writes_per_s": round(median(measurement[0] for measurement in batches)),
        "bare_writes_per_s": round(bare_rate),
        "p99_ms": round(_middle(many, "p99_ms"), 1),
        "p99_ms_64_slots": round(_middle(few, "p99_ms"), 1),
        "bare_p99_ms": round(_middle(bare, "p99_ms"), 1),
        "half_writes_per_s": round(_middle(half, "rate")),
        "half_p50_ms": round(_middle(half, "p50_ms"), 1),
        "half_p99_ms": round(_middle(half, "p99_ms"), 1),
        "bare_half_writes_per_s": round(_middle(bare_half, "rate")),
        "bare_half_p50_ms": round(_middle(bare_half, "p50_ms"), 1),
        "bare_half_p99_ms": round(_middle(bare_half, "p99_ms"), 1),
        "share_of_bare": round(_middle(many, "rate") / bare_rate, 2),
        "share_of_bare_64_slots": round(_middle(few, "rate") / bare_rate, 2),
        "batch_times_bare": round(median(measurement[0] for measurement in batches) / bare_rate, 1),
        "cpu_us_per_write": round(_middle(many, "cpu_us"), 1),
        "cpu_us_per_write_64_slots": round(_middle(few, "cpu_us"), 1),
        "cpu_us_per_write_at_half": round(_middle(half, "cpu_us"), 1),
        "bare_cpu_us_per_write": round(_middle(bare, "cpu_us"), 1),
        "cpu_us_per_batch_write": round(median(measurement[1] for measurement in batches), 1),
        "idle_p50_ms": round(idle.p50_ms, 2),
        "bare_idle_p50_ms": round(idle_bare.p50_ms, 2),
        "rss_mib": round(rss),
        "connections": connections,
        "cores": os.cpu_count() or 0,
        "cpu_elsewhere": round(elsewhere, 2),
    }


# --- load -------------------------------------------------------------------------------------------------------------


def _order(number: int) -> dict[str, object]:
    key = random.Random(number).randrange(10**9)
    return {"order_id": f"o-{key}", "customer_id": f"c-{key % 997}", "status": "paid", "amount": 12.5}


def _requests() -> list[bytes]:
    requests = []
    for number in range(REQUESTS):
        body = json.dumps(_order(number), separators=(",", ":")).encode()
        head = (
            "POST /v1/writes/order HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Idempotency-Key: k-{number}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def _batch() -> bytes:
    lines = (
        {"type": "order", "body": _order(number), "idempotency_key": f"k-{number}"} for number in range(BATCH_LINES)
    )
    body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    head = f"POST /v1/writes HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Measured(NamedTuple):
    """Answers a second, milliseconds to an answer, and the server's processor time each."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def _middle(measured: list[_Measured], figure: str) -> float:
    return median(getattr(measurement, figure) for measurement in measured)


class _Client(asyncio.Protocol):
    """Sends a request where the load has one that is due: at first, and when the last is answered in full."""

    def __init__(self, load: _Load) -> None:
        self._load, self._rest, self._due = load, b"", 0.0

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._load.free(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        head = data.find(b"\r\n\r\n")
        if head < 0 or len(data) < head + 4 + _length(data, head):
            self._rest = data
            return
        self._rest = b""
        if not data.startswith(b"HTTP/1.1 202"):
            raise SystemExit(f"not a 202: {data[:300]!r}")
        self._load.latencies.append(time.perf_counter() - self._due)
        self._load.free(self)


def _length(data: bytes, head: int) -> int:
    at = data.find(b"content-length: ", 0, head) + 16
    return int(data[at : data.find(b"\r", at)])


class _Load:
    """As much as the server answers: a connection that is free gets the next request."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests, self._number = requests, 0
        self.latencies: list[float] = []
        self.going = True

    def free(self, client: _Client) -> None:
        if self.going:
            self._number += 1
            client.send(self._requests[self._number % len(self._requests)], time.perf_counter())

    async def run(self) -> None:
        """There is nothing to do: each answer brings the next request."""


class _SteadyLoad(_Load):
    """A steady rate: a request that is due waits for a free connection if it must, and its time runs meanwhile."""

    def __init__(self, requests: list[bytes], rate: float) -> None:
        super().__init__(requests)
        self._rate = rate
        self._clients: deque[_Client] = deque()
        self._due: deque[float] = deque()

    def free(self, client: _Client) -> None:
        self._clients.append(client)
        self._send()

    def _send(self) -> None:
        while self._due and self._clients:
            self._number += 1
            self._clients.popleft().send(self._requests[self._number % len(self._requests)], self._due.popleft())

    async def run(self) -> None:
        begun, made = time.perf_counter(), 0
        while self.going:
            until = int((time.perf_counter() - begun) * self._rate)
            self._due.extend(begun + number / self._rate for number in range(made, until))
            made = until
            self._send()
            await asyncio.sleep(TICK_SECONDS)


def _load(server, requests: list[bytes], connections: int, seconds: float) -> _Measured:
    return uvloop.run(_measure(server, _Load(requests), connections, seconds))


def _load_steadily(server, requests: list[bytes], connections: int, seconds: float, rate: float) -> _Measured:
    return uvloop.run(_measure(server, _SteadyLoad(requests, rate), connections, seconds))


async def _measure(server, load: _Load, connections: int, seconds: float) -> _Measured:
    address, process = server
    loop = asyncio.get_running_loop()
    transports = [(await loop.create_connection(lambda: _Client(load), *address))[0] for _ in range(connections)]
    running = asyncio.create_task(load.run())
    await asyncio.sleep(WARM_SECONDS)
    load.latencies.clear()
    begun, cpu = time.perf_counter(), _cpu_seconds(process)
    await asyncio.sleep(seconds)
    taken, cpu = time.perf_counter() - begun, _cpu_seconds(process) - cpu
    latencies = sorted(load.latencies)
    load.going = False
    await running
    await asyncio.sleep(1.0)
    for transport in transports:
        transport.close()
    count = len(latencies)
    return _Measured(count / taken, 1e3 * latencies[count // 2], 1e3 * latencies[int(count * 0.99)], 1e6 * cpu / count)


def _load_batches(server, batch: bytes, seconds: float) -> tuple[float, float]:
    """Writes a second in whole batches, and microseconds of CPU each."""
    address, process = server
    end = time.perf_counter() + seconds

    async def stream():
        taken = 0
        while time.perf_counter() < end:
            reader, writer = await asyncio.open_connection(*address, limit=1 << 22)
            writer.write(batch)
            text = []
            while not (text and text[-1].endswith(b"0\r\n\r\n")):
                text.append(await reader.read(1 << 20))
            taken += b"".join(text).count(b'"status":202')
            writer.close()
        return taken

    async def run():
        return sum(await asyncio.gather(*(stream() for _ in range(BATCH_CONNECTIONS))))

    begun, cpu = time.perf_counter(), _cpu_seconds(process)
    taken = uvloop.run(run())
    return taken / (time.perf_counter() - begun), 1e6 * (_cpu_seconds(process) - cpu) / taken


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# --- servers ----------------------------------------------------------------------------------------------------------


def _serve_bare(port: int) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def take(request: Request) -> JSONResponse:
        await request.body()
        return JSONResponse({"id": "1"}, status_code=202)

    app = Starlette(routes=[Route("/v1/writes/{type:path}", take, methods=["POST"])])
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False)


@contextmanager
def _started(*arguments: str, ready: str = "", **environment: str):
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *arguments], stderr=log, env=os.environ | environment)
        try:
            text = ""
            while ready and ready not in text:
                if process.poll() is not None:
                    raise SystemExit(text)
                time.sleep(0.05)
                log.seek(0)
                text = log.read().decode()
            yield process, text
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _broker():
    with _started("-m", "shardctl.broker", "--port", "0", ready="PUBSUB_EMULATOR_HOST=") as (_, text):
        yield text.partition("PUBSUB_EMULATOR_HOST=")[2].split()[0]


@contextmanager
def _bare():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _started("-m", "bench.gateway", "--bare", str(port)) as (process, _):
        address = ("127.0.0.1", port)
        while True:
            try:
                socket.create_connection(address).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield address, psutil.Process(process.pid)


@contextmanager
def _gateway(folder: Path, broker: str, bits: int):
    topic, slots = f"bench-{bits}", 1 << bits
    PublisherClient(transport=PublisherGrpcTransport(channel=grpc.insecure_channel(broker))).create_topic(
        name=f"projects/bench-project/topics/{topic}"
    )
    file = folder / f"{topic}.yaml"
    file.write_text(FLEET.format(topic=topic, bits=bits, middle=slots // 2 - 1, after=slots // 2, last=slots - 1))
    arguments = ("-m", "shardctl", "gateway", "-f", str(file), "--port", "0")
    with _started(*arguments, ready="serving http://", PUBSUB_EMULATOR_HOST=broker) as (process, text):
        host, _, port = text.partition("serving http://")[2].replace('"', " ").split()[0].partition(":")
        yield (host, int(port)), psutil.Process(process.pid)


if __name__ == "__main__":
    main()

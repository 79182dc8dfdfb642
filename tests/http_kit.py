"""A real HTTP backend on loopback for tests: it answers as a test asks, and remembers each call by its idempotency key."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from arrival_kit import Database
from patience import PATIENCE_SECONDS

from consumer.observability.metrics import Metrics
from consumer.sinks.http.sink import HttpSink
from consumer.sinks.router import sink_of
from consumer.sinks.sql import SqlSink


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["x-shardctl-idempotency-key"]


@dataclass
class Reply:
    """What to answer. `hang` seconds pass first; `drip` sends the body a byte each so many seconds; None cuts the line."""

    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    hang: float = 0.0
    drip: float = 0.0


class Backend:
    """`answer` maps a call to a reply. `effects` are the keys that were answered with success, each as often as it was."""

    def __init__(
        self, answer: Callable[[Call], Reply] = lambda _: Reply(), context: ssl.SSLContext | None = None
    ) -> None:
        self.answer, self.calls, self.effects = answer, [], Counter[str]()
        self.at_once = self.most_at_once = self.connections = 0
        self._scheme = "https" if context else "http"
        self._context, self._ready, self._loop = context, threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def asked(self) -> list[str]:
        return [call.key for call in self.calls]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        server.close()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        call = Call(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.calls.append(call)
            reply = self.answer(call)
            await asyncio.sleep(reply.hang)
            if reply.status is None:
                return False
            if 200 <= reply.status < 300:
                self.effects[call.key] += 1
            lines = {"Content-Length": str(len(reply.body)), **reply.headers}
            text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"HTTP/1.1 {reply.status} Whatever secret\r\n{text}\r\n".encode())
            step = 1 if reply.drip else max(1, len(reply.body))
            for at in range(0, len(reply.body), step):
                writer.write(reply.body[at : at + step])
                await writer.drain()
                await asyncio.sleep(reply.drip)
            await writer.drain()
        finally:
            self.at_once -= 1
        return True


QUICK = {
    "timeout": timedelta(seconds=3),
    "retry_minimum": timedelta(milliseconds=10),
    "retry_maximum": timedelta(milliseconds=40),
}


class Place:
    """A shard's SQLite database, and the sink of its type `call` on a backend. `settings` may go below the file's bounds."""

    def __init__(
        self, folder: Path, url: str, more: str = "", *, secrets: Path = Path("/none"), **settings: Any
    ) -> None:
        on_poison = settings.pop("on_poison", "dead_letter")
        types = f"  call: {{http: {{url: '{url}'{more}}}, routing_key: id, on_poison: {on_poison}}}\n"
        types += "  row: {table: rows, key: id, columns: {id: text, n: integer}}\n"
        consumer = {"statement_timeout": settings.pop("statement_timeout", timedelta(seconds=10))}
        self.database = Database(settings.pop("database", f"sqlite:///{folder / 'shard.db'}"), types)
        config = self.database.config
        breaker = config.message_types["call"].http.breaker.model_copy(update=settings.pop("breaker", {}))
        changed = config.message_types["call"].http.model_copy(update={**QUICK, **settings, "breaker": breaker})
        kinds = {**config.message_types, "call": config.message_types["call"].model_copy(update={"http": changed})}
        self.metrics = Metrics()
        self.stopping = False
        limits = config.consumer.model_copy(update=consumer)
        self.http = HttpSink(kinds, limits, secrets, self.metrics, lambda: self.stopping)
        self.database.sink = sink_of(SqlSink(self.database.dialect, kinds), kinds, self.http)
        self.database.read.keywords["check"] = self.database.sink.check
        self.database.store = self.store = self.database.new_store()

    def call(self, key: str = "k", ident: str = "", body: Any = None, kind: str = "call"):
        return self.database.arrive(kind, {"id": key} if body is None else body, key, ident=ident)

    def outcomes(self) -> dict[str, float]:
        samples = next(iter(self.metrics.http_calls.collect())).samples
        return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total") and s.value}

    def close(self) -> None:
        self.http.close()
        self.database.engine.dispose()

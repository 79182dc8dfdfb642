"""`/health`, `/ready` and `/metrics`, served by an event loop of their own, so that they answer when the consumer's doesn't."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from consumer.observability.metrics import Metrics
from shardctl.serving.server import Server
from shardctl.serving.sockets import BACKLOG, bind
from shardctl.supervision.background import start_thread
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

STALLED_SECONDS = 30  # if the event loop hasn't moved for so long, only a restart helps
DRAIN_SECONDS = 1
TEXT = "text/plain; charset=utf-8"


class Health:
    """`beat` is called by the consumer's event loop; `ready` returns None or why not. Raises UsageError where it can't listen."""

    def __init__(self, host: str, port: int, metrics: Metrics, ready: Callable[[], str | None]) -> None:
        self._metrics, self._ready = metrics, ready
        self._last_beat = time.monotonic()
        self._trouble = Trouble("probes and metrics", log, "probe_failed")
        self._server = Server(self._serve, drain_seconds=DRAIN_SECONDS)
        bound = bind(host, port, "probes", "Free the port, or take another with PORT.")
        bound.listen(BACKLOG)
        self.port: int = bound.getsockname()[1]
        self._thread = start_thread("health", lambda: asyncio.run(self._server.serve_on(bound)), log)

    def beat(self) -> None:
        self._last_beat = time.monotonic()

    def close(self) -> None:
        self._server.stop(at_once=True)
        self._thread.join()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - no request has a body to read
        try:
            status, kind, body = self._answer(scope["path"] if scope["method"] == "GET" else "")
        except Exception as error:  # noqa: BLE001 - reported once, in place of a traceback for each scrape
            self._trouble.met(error, "a request was not answered", bug=True)
            status, kind, body = 500, TEXT, b"a bug; see the log\n"
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/health":
            silent = time.monotonic() - self._last_beat
            return (200, TEXT, b"ok\n") if silent < STALLED_SECONDS else (503, TEXT, b"the event loop has stalled\n")
        if path == "/ready":
            reason = self._ready()
            return (200, TEXT, b"ready\n") if reason is None else (503, TEXT, f"not ready: {reason}\n".encode())
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
        return 404, TEXT, b"there is GET /health, /ready and /metrics\n"

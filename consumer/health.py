"""`/health`, `/ready` and `/metrics`, served from a thread of their own, so that they answer when the event loop doesn't."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from consumer.metrics import Metrics
from shardctl.background import start_thread
from shardctl.trouble import Trouble

log = logging.getLogger(__name__)

STALLED_SECONDS = 30  # the event loop hasn't moved for so long: restarting is all that is left


class Health:
    """`beat` is called by the event loop; `ready` answers None or why not."""

    def __init__(self, host: str, port: int, metrics: Metrics, ready: Callable[[], str | None]) -> None:
        self._last_beat = time.monotonic()
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = health._answer(self.path, metrics, ready)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Probes are not worth a line each."""

        self._server = _server_of(host)((host, port), Handler)
        self.port = self._server.server_address[1]
        start_thread("health", self._server.serve_forever, log)

    def beat(self) -> None:
        self._last_beat = time.monotonic()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, metrics: Metrics, ready: Callable[[], str | None]) -> tuple[int, str, bytes]:
        text = "text/plain; charset=utf-8"
        if path == "/health":
            silent = time.monotonic() - self._last_beat
            return (200, text, b"ok\n") if silent < STALLED_SECONDS else (503, text, b"the event loop has stalled\n")
        if path == "/ready":
            reason = ready()
            return (200, text, b"ready\n") if reason is None else (503, text, f"not ready: {reason}\n".encode())
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry)
        return 404, text, b"there is /health, /ready and /metrics\n"


def _server_of(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        trouble = Trouble("probes and metrics", log, "probe_failed")

        def handle_error(self, *_: object) -> None:
            """In place of a traceback on stderr for each scrape: many a line, and none that a collector of JSON can read."""
            error = sys.exception()
            if isinstance(error, Exception):
                self.trouble.met(error, "a request was not answered", bug=not isinstance(error, OSError))

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is every address, IPv4 too
            super().server_bind()

    return Server

"""A backend for types with `http`, to try schedules against: it takes each Idempotency-Key once, whatever comes how often.

    python -m examples.backend 8081 &
    shardctl up        # with  http: {url: "http://127.0.0.1:8081/take"}

The key and the effect stand in one transaction: that is all it takes to turn calls that may repeat into effects that don't.
"""

from __future__ import annotations

import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BYTES = 10 * 1024**2


class Taken:
    """What has been taken, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS taken (key TEXT PRIMARY KEY, kind TEXT, body BLOB)")

    def take(self, key: str, kind: str, body: bytes) -> bool:
        """False where the key was taken before; then nothing is done."""
        with self._open() as database:
            row = (key, kind, body)
            return database.execute("INSERT INTO taken VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30)


def handler_of(taken: Taken) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # so that connections are used again

        def do_POST(self) -> None:
            key, size = self.headers.get("Idempotency-Key"), self.headers.get("Content-Length", "")
            if not key or not size.isdecimal() or int(size) > MAX_BYTES:
                self._answer(400, b'{"error": "an Idempotency-Key and a Content-Length are wanted"}')
                return
            new = taken.take(key, self.headers.get("X-Shardctl-Type", ""), self.rfile.read(int(size)))
            self._answer(201 if new else 200, b'{"new": true}' if new else b'{"new": false}')

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = status >= 400  # a body that wasn't read would be taken for the next request

    return Handler


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8081
    server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(Taken(Path("taken.db"))))
    print(f"taking at http://127.0.0.1:{server.server_port}/, into taken.db", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

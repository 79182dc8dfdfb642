"""An API server that keeps Leases as Kubernetes does: over HTTP, with optimistic concurrency, and in trouble when a test asks."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from patience import PATIENCE_SECONDS

MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
GROUP = "/apis/coordination.k8s.io/v1/namespaces"


class LeaseApi:
    """`with LeaseApi() as api:` serves on a free port of loopback; with an SSL context, over TLS.

    `token` is the one that is let in. `status` answers every request with that; `delay_seconds` holds each back;
    `gate` holds them until it is set; `lose_answers` does what was asked and says 500.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, token: str = "let-me-in") -> None:
        self.leases: dict[str, dict] = {}
        self.token, self.status, self.delay_seconds, self.lose_answers = token, 0, 0.0, False
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[str] = []
        self._version, self._lock = 100, threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = api._answer(self.command, self.path, self.headers, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self._serve()

            def do_POST(self):
                self._serve()

            def do_PUT(self):
                self._serve()

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """Clients that give up are what these tests are about."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def lease(self, name="shop-s0"):
        """Its spec; empty where there is none."""
        lease_read = self.leases.get(f"{GROUP}/shop/leases/{name}")
        return dict(lease_read["spec"]) if lease_read else {}

    def put(self, name="shop-s0", **spec):
        """As another candidate writes it."""
        with self._lock:
            path = f"{GROUP}/shop/leases/{name}"
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "shop"},
            }
            self._store(path, {**body, "spec": spec})

    def _answer(self, method, path, headers, body):
        self.requests.append(method)
        self.gate.wait(PATIENCE_SECONDS)
        time.sleep(self.delay_seconds)
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, status_of(401, "Unauthorized")
        if self.status:
            return self.status, status_of(self.status, "as the test wants it")
        with self._lock:
            answer = self._keep(method, path, json.loads(body) if body else None)
        return (500, status_of(500, "lost")) if self.lose_answers and method != "GET" else answer

    def _keep(self, method, path, body):
        if method == "GET":
            lease_read = self.leases.get(path)
            return (200, lease_read) if lease_read else (404, status_of(404, "leases not found"))
        if (fault := wrong_in(body)) is not None:
            return 422, status_of(422, fault)
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.leases:
                return 409, status_of(409, "already exists")
            return 201, self._store(path, body)
        if path not in self.leases:
            return 404, status_of(404, "leases not found")
        if body["metadata"].get("resourceVersion") != self.leases[path]["metadata"]["resourceVersion"]:
            return 409, status_of(409, "the object has been modified")
        return 200, self._store(path, body)

    def _store(self, path, body):
        self._version += 1
        body["metadata"] = {**body["metadata"], "resourceVersion": str(self._version), "uid": "u-1"}
        self.leases[path] = body
        return body


def status_of(code, message):
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def wrong_in(body):
    """What the real API's validation would refuse."""
    spec = body.get("spec", {})
    if body.get("kind") != "Lease" or body.get("apiVersion") != "coordination.k8s.io/v1":
        return "kind"
    if spec.get("leaseDurationSeconds", 0) <= 0 or spec.get("leaseTransitions", 0) < 0:
        return "spec"
    times = [spec[name] for name in ("acquireTime", "renewTime") if name in spec]
    return None if all(MICRO_TIME.fullmatch(time_text) for time_text in times) else "times"


def mount(folder, token="let-me-in", authority=b""):
    """What the kubelet puts into a pod."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token + "\n")
    (folder / "namespace").write_text("shop")
    (folder / "ca.crt").write_bytes(authority)
    return folder

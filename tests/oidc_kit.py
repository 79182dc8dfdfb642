"""An issuer with real keys: it signs tokens and publishes its keys on a server of its own."""

from __future__ import annotations

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


@cache
def key(name: str) -> Any:
    """A private key by name, made once: `ec…` on P-256, `small…` too short to be trusted, others RSA."""
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 1024 if name.startswith("small") else 2048)


class Issuer:
    """Publishes the keys in `published`; `status` and `stalls` let it fail. `fetches` counts."""

    def __init__(self, *published: str) -> None:
        self.published, self.status, self.stalls, self.fetches = list(published), 200, False, 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                while issuer.stalls:
                    time.sleep(0.01)
                body = json.dumps({"keys": [_public(name) for name in issuer.published]}).encode()
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stalls = False
        self._server.shutdown()
        self._server.server_close()


def _public(name: str) -> dict[str, Any]:
    algorithm = ECAlgorithm if name.startswith("ec") else RSAAlgorithm
    return {**algorithm.to_jwk(key(name).public_key(), as_dict=True), "kid": name, "use": "sig"}


def token(signer: str = "k1", *, kid: str | None = None, algorithm: str | None = None, **claims: Any) -> str:
    """A token of issuer `https://issuer.test` for audience `aud`, good for an hour; a claim of None is left out."""
    now = time.time()
    payload = {"iss": "https://issuer.test", "aud": "aud", "sub": "me", "iat": now, "exp": now + 3600, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    algorithm = algorithm or ("ES256" if signer.startswith("ec") else "RS256")
    return jwt.encode(payload, key(signer), algorithm, headers={"kid": kid or signer})

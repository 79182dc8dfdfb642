"""The broker as an issuer of tokens: a push carries one so that its receiver can verify that Pub/Sub sent it."""

from __future__ import annotations

import json
import logging
import math
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shardctl.supervision.background import start_thread

_log = logging.getLogger(__name__)

ISSUER = (
    "https://accounts.google.com"  # as the service's tokens say; only the keys differ, and where they are published
)
KEY_ID = "shardctl-local"
VALID_SECONDS, USED_SECONDS = 3_600, 1_800


class Signer:
    """Makes tokens with a key of its own, which is made when the first is asked for."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[float, str]] = {}

    def token(self, email: str, audience: str, now: float) -> str:
        """A token for `audience` as Pub/Sub signs it for a service account; `now` is in seconds since the epoch."""
        import jwt

        since, token = self._made.get((email, audience), (-math.inf, ""))
        if not since <= now < since + USED_SECONDS:
            claims = {
                "iss": ISSUER,
                "aud": audience,
                "azp": "shardctl-local",
                "sub": "100000000000000000000",
                "email": email,
                "email_verified": True,
                "iat": int(now),
                "exp": int(now) + VALID_SECONDS,
            }
            token = jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": KEY_ID})
            self._made[email, audience] = now, token
        return token

    def key_set(self) -> bytes:
        """The public key as a JSON Web Key Set."""
        from jwt.algorithms import RSAAlgorithm

        key = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": KEY_ID, "use": "sig", "alg": "RS256"}]}).encode()

    @cached_property
    def _key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric import rsa

        return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


class KeysServer:
    """Publishes the signer's key over HTTP, from a thread of its own. Raises OSError where it can't listen."""

    def __init__(self, signer: Signer, address: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = signer.key_set()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not worth a line each."""

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_address[1]}/keys"
        start_thread("keys", self._server.serve_forever, _log)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

"""A real token server on loopback: an OAuth 2 token endpoint, and Google's two for ID tokens. Its tokens are real JWTs."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote_plus, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

CLIENT, SECRET = "shard s1", "hush:hush&ö"  # must be encoded on the way
_KEYS: list[rsa.RSAPrivateKey] = []


def private_key() -> rsa.RSAPrivateKey:
    """Made once: it takes a while."""
    if not _KEYS:
        _KEYS.append(rsa.generate_private_key(public_exponent=65_537, key_size=2_048))
    return _KEYS[0]


@dataclass
class Asked:
    path: str
    fields: dict[str, str]
    authorization: str


@dataclass
class TokenServer:
    """Signs tokens that are valid for `lifetime_seconds` and for this `era`. `reply` is answered instead, if there is one."""

    lifetime_seconds: float = 3_600.0
    reply: tuple[int, bytes] | None = None
    era: int = 0
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listen(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start(self) -> None:
        """Listen again, on the port of before."""
        self._listen(self.port)

    def token(self, audience: str) -> str:
        now = time.time()
        claims = {
            "aud": audience,
            "exp": now + self.lifetime_seconds,
            "iat": now,
            "era": self.era,
            "n": len(self.asked),
        }
        return jwt.encode(claims, private_key(), "RS256")

    def accepts(self, header: str, audience: str) -> bool:
        """Whether a backend that verifies tokens accepts this header: signature, end, audience, era."""
        scheme, _, token = header.partition(" ")
        key = private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        try:
            claims = jwt.decode(token, key, ["RS256"], audience=audience)
        except jwt.InvalidTokenError:
            return False
        return scheme == "Bearer" and claims["era"] == self.era

    def service_account(self) -> str:
        """A key file of a Google service account whose tokens come from here."""
        pem = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return json.dumps(
            {
                "type": "service_account",
                "client_email": "s1@my-project.iam.gserviceaccount.com",
                "private_key": pem,
                "private_key_id": "k",
                "token_uri": f"{self.url}/google",
            }
        )

    def answer(self, asked: Asked) -> tuple[int, bytes]:
        path, _, query = asked.path.partition("?")
        if path == "/token":
            return self._client_credentials(asked)
        if path == "/google":  # a key file's assertion, exchanged for an ID token
            assertion = jwt.decode(asked.fields["assertion"], options={"verify_signature": False})
            return 200, json.dumps({"id_token": self.token(assertion["target_audience"])}).encode()
        if path.endswith("/identity"):
            return 200, self.token(parse_qs(query)["audience"][0]).encode()
        return 200, b'{"email": "s1@my-project.iam.gserviceaccount.com", "aliases": ["default"], "scopes": []}'

    def _client_credentials(self, asked: Asked) -> tuple[int, bytes]:
        client = (asked.fields.get("client_id", ""), asked.fields.get("client_secret", ""))
        if asked.authorization:
            name, _, secret = b64decode(asked.authorization.removeprefix("Basic ")).decode().partition(":")
            client = unquote_plus(name), unquote_plus(secret)
        if client != (CLIENT, SECRET) or asked.fields["grant_type"] != "client_credentials":
            return 401, b'{"error": "invalid_client", "error_description": "hush"}'
        token = self.token(asked.fields.get("audience", "backend"))
        fields = {"access_token": token, "token_type": "bearer", "expires_in": self.lifetime_seconds}
        return 200, json.dumps(fields).encode()

    def _listen(self, port: int) -> None:
        kit = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
                self._reply({name: values[0] for name, values in parse_qs(body).items()})

            def do_GET(self) -> None:
                self._reply({})

            def _reply(self, fields: dict[str, str]) -> None:
                asked = Asked(self.path, fields, self.headers.get("Authorization", ""))
                kit.asked.append(asked)
                status, body = kit.reply or kit.answer(asked)
                self.send_response(status)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Location", f"{kit.url}/elsewhere")
                self.send_header("Content-Type", "application/text" if "identity" in self.path else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = urlsplit(f"//127.0.0.1:{self._server.server_address[1]}").port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

"""Access tokens for client credentials (RFC 6749, section 4.4). oauthlib writes the requests and reads the answers."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

import httpx

from consumer.sinks.http.answers import phrase
from consumer.sinks.http.causes import cause_text
from consumer.sinks.http.credentials import CredentialsError, SecretFiles, Trust
from consumer.sinks.http.tokens import Token, TokenError
from shardctl.fleet.settings.httpauth import AUTH_KEYS, HttpAuth

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 256 * 1024
DEFAULT_LIFETIME_SECONDS = 300.0  # where the answer doesn't say
_CODES = frozenset(  # the standard's; any other text of an answer may hold anything, and isn't shown
    (
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    )
)


class ClientTokens:
    def __init__(self, auth: HttpAuth, secrets: Path) -> None:
        self._auth, self._url = auth, auth.token_url or ""
        parts = urlsplit(self._url)
        self.name = f"the token endpoint {parts.scheme}://{parts.netloc}"
        self._folder = secrets / (auth.secret or "")
        self._files = SecretFiles(self._folder, AUTH_KEYS["oauth2"])
        self._trust = Trust(auth.ca_secret, secrets) if parts.scheme == "https" else None

    def __repr__(self) -> str:
        return f"ClientTokens({self.name}, {self._folder})"

    def check(self) -> None:
        self._client()
        self._context()

    async def fetch(self) -> Token:
        client_id, client_secret = self._client()  # as the files say now
        body, headers = self._request(client_id, client_secret)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, answer = await self._exchange(body, headers)
        except TimeoutError:
            raise TokenError(f"didn't answer within {TIMEOUT_SECONDS:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise TokenError(f"can't be reached: {cause_text(error)}") from None
        return self._token(status, answer)

    def _client(self) -> tuple[str, str]:
        _, values = self._files.read()
        try:
            client_id, client_secret = (value.decode() for value in values)
        except UnicodeDecodeError:
            raise CredentialsError(self._folder, "client_id and client_secret must be UTF-8 text") from None
        return client_id, client_secret

    def _context(self) -> ssl.SSLContext | bool:
        return self._trust.context() if self._trust else False  # without TLS there is nothing to verify

    def _request(self, client_id: str, client_secret: str) -> tuple[str, dict[str, str]]:
        from oauthlib.oauth2 import BackendApplicationClient

        auth = self._auth
        parameters = {"audience": auth.audience} if auth.audience else {}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        in_body = auth.client_auth == "post"
        if in_body:
            parameters["client_secret"] = client_secret
        else:
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"  # encoded, as section 2.3.1 has it
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        body: str = BackendApplicationClient(client_id).prepare_request_body(
            scope=list(auth.scopes) or None, include_client_id=in_body, **parameters
        )
        return body, headers

    async def _exchange(self, body: str, headers: dict[str, str]) -> tuple[int, bytes]:
        # Hardly ever used, so nothing is kept open in between.
        async with (
            httpx.AsyncClient(verify=self._context(), trust_env=False, timeout=None) as client,  # noqa: S113 - bounded above
            client.stream("POST", self._url, content=body, headers=headers, follow_redirects=False) as response,
        ):
            answer = b""
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise TokenError(f"answered more than {MAX_ANSWER_BYTES:,} bytes")
            return response.status_code, answer

    def _token(self, status: int, answer: bytes) -> Token:
        from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error

        try:
            fields = json.loads(answer)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or (status != httpx.codes.OK and "error" not in fields):
            raise TokenError(f"answered {phrase(status)}, and no token")
        try:
            token = BackendApplicationClient("").parse_request_body_response(answer.decode())
        except OAuth2Error as error:
            code = error.error if error.error in _CODES else "an error of its own"
            raise TokenError(f"answered {phrase(status)} with {code}: does the Secret hold its client?") from None
        except (ValueError, TypeError, AttributeError):
            raise TokenError(f"answered {phrase(status)}, and a token that can't be read") from None
        value, kind = token.get("access_token"), token.get("token_type", "Bearer")
        if not isinstance(value, str) or not value or not all("!" <= sign <= "~" for sign in value):
            raise TokenError("returned a token that no header can hold")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise TokenError("returned a token of another type than Bearer")
        return Token(value, float(token.get("expires_in") or DEFAULT_LIFETIME_SECONDS))

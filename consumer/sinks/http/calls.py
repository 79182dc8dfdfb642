"""One call of a backend: bounded in time and in bytes read, and never to another host than the configured one."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from consumer.sinks.http.causes import cause_text
from consumer.sinks.http.clienttokens import ClientTokens
from consumer.sinks.http.credentials import Authorization, Trust
from consumer.sinks.http.googletokens import GoogleTokens
from consumer.sinks.http.tokens import TokenError, Tokens
from shardctl.fleet.settings.http import HttpBackend
from shardctl.supervision.background import Background

MAX_REDIRECTS = 3
# Read only so that the connection can be reused: nothing but the status of an answer counts.
MAX_ANSWER_BYTES = 64 * 1024
IDLE_SECONDS = 3.0  # an idle connection is closed before the server does so under a new request: many keep them for 5 s
_KEEP_METHOD = frozenset((301, 302, 307, 308))

log = logging.getLogger(__name__)


class CallError(Exception):
    """No answer, or one that doesn't count. `outcome` is a stable word for metrics; `sent`: the backend may have the write."""

    def __init__(self, outcome: str, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.outcome, self.sent = outcome, sent


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    retry_after: str | None


class Caller:
    """Calls of one backend. Not for threads: it lives in one event loop. Raises CredentialsError before the first call."""

    def __init__(self, settings: HttpBackend, secrets: Path) -> None:
        self._method, self._url = settings.method, httpx.URL(settings.url)
        self._timeout = settings.timeout.total_seconds()
        self._concurrency = settings.concurrency
        self._trust = Trust(settings.ca_secret, secrets) if self._url.scheme == "https" else None
        self._authorization = _authorization(settings, secrets)
        self._client: httpx.AsyncClient | None = None
        self._context: ssl.SSLContext | None = None
        self._closing = Background(log)
        self._verify_secrets()

    @property
    def place(self) -> str:
        """The backend as a log may name it: a path or a query may hold a secret."""
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii')}"

    @property
    def token_missing(self) -> bool:
        """Whether no call is made because no token can be had."""
        return isinstance(self._authorization, Tokens) and self._authorization.missing

    async def call(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a write and read the answer; where it is 401, once again with a new token.

        Raises CallError; and CredentialsError or TokenError, with which nothing was sent that the backend may have taken.
        """
        client = self._client_for(self._trust.context() if self._trust else None)
        deadline = asyncio.get_running_loop().time() + self._timeout
        credentials = await self._credentials(deadline)
        answer = await self._answer(client, data, {**headers, **credentials}, deadline)
        if answer.status == httpx.codes.UNAUTHORIZED and self._refused(credentials):
            credentials = await self._credentials(deadline)
            answer = await self._answer(client, data, {**headers, **credentials}, deadline)
        return answer

    def _verify_secrets(self) -> None:
        """Raises CredentialsError."""
        if self._trust:
            self._trust.context()
        match self._authorization:
            case Authorization():
                self._authorization.header()
            case Tokens():
                self._authorization.check()

    async def _credentials(self, deadline: float) -> Mapping[str, str]:
        """As they are now. Raises CredentialsError or TokenError."""
        match self._authorization:
            case None:
                return {}
            case Authorization():
                return {"Authorization": self._authorization.header()}
        try:
            async with asyncio.timeout_at(deadline):
                return {"Authorization": await self._authorization.header()}
        except TimeoutError:
            raise TokenError(f"no token within {self._timeout:g} s") from None

    def _refused(self, credentials: Mapping[str, str]) -> bool:
        """Whether the backend may accept another token than the one that it refused."""
        return isinstance(self._authorization, Tokens) and self._authorization.refused(credentials["Authorization"])

    async def _answer(
        self, client: httpx.AsyncClient, data: bytes, headers: Mapping[str, str], deadline: float
    ) -> Answer:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._exchange(client, data, headers)
        except TimeoutError:
            raise CallError("timeout", f"no answer within {self._timeout:g} s", sent=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise CallError("unreachable", cause_text(error), sent=not isinstance(error, httpx.ConnectError)) from None

    async def _exchange(self, client: httpx.AsyncClient, data: bytes, headers: Mapping[str, str]) -> Answer:
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            request = client.build_request(self._method, url, content=data, headers=headers)
            response = await client.send(request, stream=True, follow_redirects=False, auth=None)
            try:
                await _read(response)
            finally:
                await response.aclose()
            if not 300 <= response.status_code < 400:
                return Answer(response.status_code, response.headers.get("Retry-After"))
            url = self._redirected(url, response)
        raise CallError("redirected", f"more than {MAX_REDIRECTS} redirects", sent=True)

    def _redirected(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        """Where to send the same request. Never to another host: that would get the write and the credentials."""
        status, location = response.status_code, response.headers.get("Location")
        if status not in _KEEP_METHOD or location is None:
            raise CallError("redirected", f"answered {status}, which leads nowhere that a write can be sent", sent=True)
        target = url.join(location)
        if (target.scheme, target.host, target.port) != (self._url.scheme, self._url.host, self._url.port):
            raise CallError(
                "redirected", f"answered {status}, a redirect to another host, which isn't followed", sent=True
            )
        return target.copy_with(userinfo=b"", fragment=None)

    def _client_for(self, context: ssl.SSLContext | None) -> httpx.AsyncClient:
        if self._client is None or context is not self._context:
            if self._client is not None:
                self._close_later(self._client)
            self._client, self._context = self._new_client(context), context
        return self._client

    def _new_client(self, context: ssl.SSLContext | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=context if context is not None else False,  # without one there is no TLS
            trust_env=False,  # no proxy and no .netrc: only the file says where requests go
            timeout=None,  # noqa: S113 - each call has one, for all of it together
            headers={"User-Agent": "shardctl", "Accept": "*/*", "Accept-Encoding": "identity"},
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=self._concurrency, keepalive_expiry=IDLE_SECONDS
            ),
        )

    def _close_later(self, client: httpx.AsyncClient) -> None:
        """Close it when its calls in flight are over."""

        async def close() -> None:
            await asyncio.sleep(self._timeout + 1)
            await client.aclose()

        self._closing.once("closing the client of old credentials", close())

    async def close(self) -> None:
        if isinstance(self._authorization, Tokens):
            await self._authorization.close()
        if self._client is not None:
            await self._client.aclose()


def _authorization(settings: HttpBackend, secrets: Path) -> Authorization | Tokens | None:
    match settings.auth:
        case None:
            return None
        case auth if auth.kind == "google":
            return Tokens(GoogleTokens(settings.token_audience))
        case auth if auth.kind == "oauth2":
            return Tokens(ClientTokens(auth, secrets))
        case auth:
            return Authorization(auth, secrets)


async def _read(response: httpx.Response) -> None:
    """Read the whole answer, or enough of a large one. Undecoded: a small one may unpack to gigabytes."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            return

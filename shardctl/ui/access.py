"""Who may talk to the page's server: the holder of the token, from the page itself.

A browser on this machine opens any site, and any site may try to reach a server on loopback. Four rules prevent that:
- each call needs the token, which is only in the printed address, in a part of it that no browser sends;
- `Host` must be a name of ours, so that a site can't point a name of its own at this machine and pose as this server;
- calls that change something must come from our own page, by `Origin`;
- the page runs only its own files, and no frame may show it.
"""

from __future__ import annotations

import hmac
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardctl.ui.problems import Problem

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})
API = "/api/"
SAFE = frozenset({"GET", "HEAD"})
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Wraps the application. `host` is the address on which the server listens."""

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app, self._token, self._host = app, token.encode(), host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal.response() if refusal else self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _is_ours(hosts[0], self._host):
            return Problem(HTTPStatus.MISDIRECTED_REQUEST, "open exactly the address that `shardctl ui` printed")
        if not scope["path"].startswith(API):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token):
            return Problem(
                HTTPStatus.UNAUTHORIZED, "the token is missing or wrong: `shardctl ui` prints a new one at each start"
            )
        if scope["method"] not in SAFE and headers.getlist("origin") != [f"{scope['scheme']}://{hosts[0]}"]:
            return Problem(
                HTTPStatus.FORBIDDEN, "only the page itself may change something: its Origin is missing or another's"
            )
        return None


def _is_ours(host: str, bound: str) -> bool:
    """Whether a `Host` header names this server. Its port doesn't matter: a tunnel may have another."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in LOOPBACK or name == bound:
        return True
    return bound in EVERYWHERE and _is_address(name)  # no site's name is an address


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

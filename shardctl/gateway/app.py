"""The gateway as an ASGI application: its routes, and errors as problem details."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shardctl.gateway.batches import Batches
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.openapi import document
from shardctl.gateway.paths import WRITES
from shardctl.gateway.problems import MEDIA_TYPE, Problem
from shardctl.gateway.requests import respond
from shardctl.gateway.writes import SingleWrite

log = logging.getLogger(__name__)


def application(context: GatewayContext) -> ASGIApp:
    """The whole API. Single writes bypass Starlette: for them, its routing costs as much as everything else here."""
    single = SingleWrite(context)
    others = _others(context, single)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(WRITES):
            try:
                await single(scope, receive, send)
            except Exception:
                log.exception("a request failed by a bug", extra={"action": "bug"})
                body = _BROKEN.body()
                pairs = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
                await respond(send, _BROKEN.status, [*pairs, (b"connection", b"close")], body)
        else:
            await others(scope, receive, send)

    return front


def _others(context: GatewayContext, single: SingleWrite) -> Starlette:
    described = orjson.dumps(document(context.fleet))
    lookup = _lookup(context)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        why_not = context.why_not_ready()
        return PlainTextResponse("ready\n") if why_not is None else PlainTextResponse(f"not ready: {why_not}\n", 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(context.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def openapi(_: Request) -> Response:
        return Response(described, media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/writes", Batches(context), methods=["POST"]),
            Route(WRITES + "{path:path}", _ByPath(single, lookup)),
            Route("/openapi.json", openapi),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _refused, Exception: _broken},
    )


def _lookup(context: GatewayContext) -> ASGIApp | None:
    if context.outcomes is None:
        return None
    from shardctl.gateway.lookups import Lookup  # and with it, the databases' code

    return Lookup(context, context.outcomes)


class _ByPath:
    """A path behind a type's own asks for a write, all others take one. A refusal names the methods of its path in Allow.

    An object, since Starlette gives a function a request.
    """

    def __init__(self, post: ASGIApp, get: ASGIApp | None) -> None:
        self._post, self._get = post, get

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        get = self._get if "/" in scope["path"].removeprefix(WRITES) else None
        app, methods = (get, ("GET", "HEAD")) if get else (self._post, ("POST",))
        if scope["method"] not in methods:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(methods)})
        await app(scope, receive, send)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, _SAID.get(error.status_code, str(error.detail)), headers=error.headers)
    return _response(problem)


async def _broken(_: Request, error: Exception) -> Response:  # noqa: ARG001 - the server logs it
    return _response(_BROKEN)


def _response(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


_BROKEN = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error; the gateway's log has the details")
_SAID: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "there is POST /v1/writes/{type}, POST /v1/writes and GET /openapi.json",
    HTTPStatus.METHOD_NOT_ALLOWED: "this path doesn't support this method; Allow lists those that it does",
}

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
from shardctl.gateway.problems import MEDIA_TYPE, Problem
from shardctl.gateway.requests import respond
from shardctl.gateway.writes import WRITES, SingleWrite

log = logging.getLogger(__name__)


def application(context: GatewayContext) -> ASGIApp:
    """The whole API. Single writes bypass Starlette: for them, its routing costs as much as everything else here."""
    single, others = SingleWrite(context), _others(context)

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


def _others(context: GatewayContext) -> Starlette:
    described = orjson.dumps(document(context.fleet))

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
            Route(WRITES + "{type:path}", SingleWrite(context), methods=["POST"]),
            Route("/openapi.json", openapi),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _refused, Exception: _broken},
    )


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

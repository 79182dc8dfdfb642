"""The second door as an ASGI application: one request in, one method of the service called, one JSON object out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import orjson
from google.protobuf import json_format
from starlette.types import Receive, Scope, Send

from shardctl.broker.errors import InvalidArgumentError, NotFoundError, RefusedError
from shardctl.broker.protos import Proto, of
from shardctl.broker.rest.messages import parameters_of, reply_of, request_of
from shardctl.broker.rest.routes import Route, Routes
from shardctl.broker.service import Service
from shardctl.broker.unsupported import IAM, refusal

MAX_BODY_BYTES = 15_000_000  # a publish request of 10 MB, its data in base64
BODY_SECONDS = 30.0  # a client that stops in the middle of a body is not waited for
LARGE_BYTES = 64 * 1024  # what is larger is parsed and written beside the event loop, which has others to serve
STATUSES = {
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 400,
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
}

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class _ClientGoneError(Exception):
    """The client has disconnected: there is nobody to answer."""


class Application:
    """`GET /` says that the broker is there, as the official emulator does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes = Routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, body = 200, await self._answer(scope, receive)
        except _ClientGoneError:
            return
        except RefusedError as refused:
            status, body = STATUSES[refused.code], _error(STATUSES[refused.code], refused)
        except asyncio.CancelledError:  # the broker stops, and may be waiting for messages here
            status, body = 503, _STOPPING
        except Exception:  # noqa: BLE001 - logged, with its traceback
            _log.exception("a request failed by a bug", extra={"action": "bug"})
            status, body = 500, _BROKEN
        headers = [
            (b"content-type", b"application/json; charset=UTF-8"),
            (b"content-length", b"%d" % len(body)),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        verb, path = scope["method"], scope["raw_path"].decode("latin-1")
        if path == "/" and verb == "GET":
            return b"{}"
        match = self._routes.match(verb, path)
        if match is None:
            raise NotFoundError(
                f"There is no {verb} {path[:200]}. Paths are those of Pub/Sub's REST API, and begin with /v1/."
            )
        route = match.route
        if route.service == IAM:
            raise refusal(route.name)
        parameters = parameters_of(scope["query_string"])
        body = await _body(scope, receive)
        kind = of("PullRequest" if route.name == "Pull" else self._service.methods[route.name].request)
        request = await _beside(len(body), lambda: request_of(kind, match, parameters, body))
        reply = await self._call(route, request, receive)
        return await _beside(reply.ByteSize(), lambda: reply_of(reply, parameters))

    async def _call(self, route: Route, request: Proto, receive: Receive) -> Proto:
        if route.name == "Pull":
            pulled = await _unless_gone(receive, self._service.pull(request, None))
            return of("PullResponse").FromString(pulled)
        return await self._service.call(route.name, request)


async def _beside(size: int, work: Callable[[], _Result]) -> _Result:
    """In a thread where it takes long."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. Raises InvalidArgumentError where it is too large, no JSON by its headers, or doesn't come."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise _ClientGoneError
                body += event["body"]
                if len(body) > MAX_BODY_BYTES:
                    raise InvalidArgumentError(f"Request payload size exceeds the limit: {MAX_BODY_BYTES} bytes.")
                if not event["more_body"]:
                    break
    except TimeoutError:
        raise InvalidArgumentError(f"The body didn't come within {BODY_SECONDS:.0f} s.") from None
    if body:
        _check_headers(dict(scope["headers"]))
    return bytes(body)


def _check_headers(headers: dict[bytes, bytes]) -> None:
    """A page in a browser can send any other type to this port without asking first. So JSON alone is taken."""
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise InvalidArgumentError("Send the body with the header Content-Type: application/json.")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise InvalidArgumentError("Content-Encoding isn't supported: send the body uncompressed.")


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """A client that has disconnected waits for no messages, and gets none that others could have."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    pulling, leaving = asyncio.create_task(work), asyncio.create_task(leave())
    try:
        await asyncio.wait({pulling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not pulling.done():
            raise _ClientGoneError
        return await pulling
    finally:
        pulling.cancel()
        leaving.cancel()
        await asyncio.gather(pulling, leaving, return_exceptions=True)


def _error(status: int, refused: RefusedError) -> bytes:
    return _error_body(
        status, refused.code, refused.message, [json_format.MessageToDict(detail) for detail in refused.details]
    )


def _error_body(code: int, status: str, message: str, details: Sequence[Any] = ()) -> bytes:
    """Google's form of an error."""
    error = {"code": code, "message": message, "status": status}
    return orjson.dumps({"error": error | {"details": details} if details else error})


_BROKEN = _error_body(500, "INTERNAL", "An internal error; the broker's log has the details.")
_STOPPING = _error_body(503, "UNAVAILABLE", "The broker is stopping.")

"""The page's server: its files, what it reads, and its few actions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shardctl import audit
from shardctl.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError
from shardctl.status.poller import Asker
from shardctl.ui import aside, keys, letters, shards
from shardctl.ui.access import Guard
from shardctl.ui.problems import Problem
from shardctl.ui.view import View

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
PATIENCE_SECONDS = 20.0
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

KINDS = {int: "a whole number", str: "a text", bool: "true or false"}

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def application(view: View, token: str, host: str) -> ASGIApp:
    """Each call of `/api/` must have the `token`; `host` is the address on which the server listens."""
    api = _Api(view)
    routes = [
        Route("/api/status", _answer(lambda _: view.status())),
        Route("/api/slots", _answer(lambda _: view.slots())),
        Route("/api/heat", _answer(lambda _: view.heat())),
        Route("/api/history", _answer(lambda _: view.history())),
        Route("/api/shard", _answer(api.shard)),
        Route("/api/key", _answer(api.key)),
        Route("/api/parked", _answer(api.parked_keys)),
        Route("/api/parked/messages", _answer(api.parked_messages)),
        Route("/api/parked/replay", _answer(api.parked_replay), methods=["POST"]),
        Route("/api/letters", _answer(api.dead_letters)),
        Route("/api/letters/replay", _answer(api.letters_replay), methods=["POST"]),
        *(Route(path, _file(content, kind)) for path, content, kind in _pages()),
    ]
    handlers = {Problem: _problem, HTTPException: _http, ShardctlError: _refused, Exception: _broken}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, host)


class _Api:
    """What the page reads of shards, keys and dead letters, and what it does with them: one action at a time."""

    def __init__(self, view: View) -> None:
        self._view, self._asker = view, Asker(PATIENCE_SECONDS)
        self._keys, self._shards = Asker(PATIENCE_SECONDS), Asker(PATIENCE_SECONDS)
        self._acting = asyncio.Lock()

    async def shard(self, request: Request) -> Any:
        look, urls = await self._view.look(), self._view.urls()
        return await _in_thread(shards.shown, look, urls, self._shards, request.query_params.get("name", ""))

    async def key(self, request: Request) -> Any:
        key, kind, at = (request.query_params.get(name, "") for name in ("key", "type", "time"))
        look, urls = await self._view.look(), self._view.urls()
        return await _in_thread(keys.looked_up, look, urls, self._keys, key, kind, at)

    async def parked_keys(self, _: Request) -> Any:
        return await _in_thread(aside.listed, self._view.fleet().fleet, self._view.urls(), self._asker)

    async def parked_messages(self, request: Request) -> Any:
        query = request.query_params
        slot = _number(query.get("slot"), "slot")
        kind, key = query.get("type", ""), query.get("key", "")
        _check_text(kind, "type")
        _check_text(key, "key")
        fleet, urls = self._view.fleet().fleet, self._view.urls()
        return await _in_thread(aside.shown, fleet, urls, query.get("shard", ""), slot, kind, key)

    async def parked_replay(self, request: Request) -> Any:
        fields = {"shard": str, "slot": int, "type": str, "key": str, "messages": int, "parked_time": str}
        body = await _body(request, fields)
        fleet, urls = self._view.fleet().fleet, self._view.urls()
        work = partial(aside.replay, fleet, urls, *(body[name] for name in fields))
        return await self._act(
            "parked release", {"shard": body["shard"], "type": body["type"], "keys": [body["key"]]}, work
        )

    async def dead_letters(self, request: Request) -> Any:
        strays, shard = request.query_params.get("strays") == "true", request.query_params.get("shard")
        return await _in_thread(partial(letters.listed, self._view.fleet(), strays=strays, shard=shard))

    async def letters_replay(self, request: Request) -> Any:
        body = await _body(request, {"strays": bool, "id": str, "key": str, "dead_lettered_us": int})
        confirmed = {"letter_id": body["id"], "key": body["key"], "dead_lettered_us": body["dead_lettered_us"]}
        work = partial(letters.replay, self._view.fleet(), self._view.urls(), strays=body["strays"], **confirmed)
        return await self._act("deadletter replay", {"strays": body["strays"], "ids": [body["id"]]}, work)

    async def _act(self, name: str, plan: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """The work's answer, with the action's lines in the audit."""
        async with self._acting:
            audit.begin(name, self._view.fleet().fleet, by="ui", **plan)
            code, why = EXIT_BUG, ""
            try:
                answer = await _in_thread(work)
                code = EXIT_DONE
            except Problem:
                code = EXIT_REFUSED
                raise
            except ShardctlError as error:
                code, why = EXIT_REFUSED, str(error)
                raise
            except asyncio.CancelledError:
                code = EXIT_INTERRUPTED
                raise
            finally:
                audit.end(code, why)
            return answer


def _pages() -> list[tuple[str, bytes, str]]:
    """Every file of the page by its path, read once."""
    pages = []
    for file in files("shardctl.ui").joinpath("static").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind:
            path = "/" if file.name == "index.html" else f"/static/{file.name}"
            pages.append((path, file.read_bytes(), f"{kind}; charset=utf-8"))
    return pages


def _file(content: bytes, kind: str) -> Handler:
    async def serve(_: Request) -> Response:
        return Response(content, media_type=kind)

    return serve


def _answer(work: Callable[[Request], Awaitable[Any]]) -> Handler:
    async def handle(request: Request) -> Response:
        return JSONResponse(await work(request))

    return handle


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """The result of a blocking call. Raises Problem where it takes too long; its effect may still happen then."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS + 2):
            return await run_sync(partial(work, *arguments), abandon_on_cancel=True)
    except TimeoutError:
        raise Problem(HTTPStatus.GATEWAY_TIMEOUT, "no answer yet; the action may still take effect") from None


def _number(text: str | None, name: str) -> int:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} must be a number")
    return int(text)


async def _body(request: Request, fields: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with exactly these fields. Raises Problem."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                raw += part
                if len(raw) > MAX_BODY_BYTES:
                    raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MAX_BODY_BYTES:,} bytes")
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"the body didn't come within {BODY_SECONDS:.0f} s") from None
    try:
        members = json.loads(raw)
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body isn't JSON") from None
    if not isinstance(members, dict) or members.keys() != fields.keys():
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body must have {', '.join(fields)}, and nothing else")
    for name, kind in fields.items():
        if type(members[name]) is not kind:
            raise Problem(HTTPStatus.BAD_REQUEST, f"{name} must be {KINDS[kind]}")
        if kind is str:
            _check_text(members[name], name)
    return members


def _check_text(text: str, name: str) -> None:
    """Raise Problem for half a surrogate pair, which JSON can express, and for NUL: no database takes them."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} must be {KINDS[str]}")


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = Problem(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def _refused(_: Request, error: Exception) -> Response:
    return Problem(HTTPStatus.BAD_GATEWAY, str(error)).response()


async def _broken(_: Request, error: Exception) -> Response:  # noqa: ARG001 - the server logs it
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in shardctl; its terminal shows more").response()

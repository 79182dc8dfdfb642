"""`POST /v1/writes`: writes as JSON lines, as `shardctl publish` reads them; one result a line comes back, in order.

Reading and answering run concurrently. Lines wait for room in the outbox, and too many results that the client hasn't fetched
stop the reading: a batch of any length takes bounded memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from shardctl.gateway.auth import Caller
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.encoding import LINE, Message, MessageKind
from shardctl.gateway.fields import FieldError, pointer
from shardctl.gateway.problems import Problem
from shardctl.gateway.publishing import STREAMS_SHARE
from shardctl.gateway.pubsub import NotTakenError, PublishRefusedError
from shardctl.gateway.requests import BODY_SECONDS, Headers, hung_up, no_room_to_read, query_of
from shardctl.gateway.writes import answer
from shardctl.wire.jsonlines import LineError, body_text, fields_of

MEDIA_TYPE = "application/x-ndjson"
MAX_BATCHES = 128  # at once; of each, the server may have read 320 KiB that wait for their turn
MAX_RESULTS_HELD = 50_000  # of lines read whose result the client hasn't fetched: about 5 MB
LINE_EXTRA_BYTES = 8 * 1024  # for what stands around a body
SENT_AT_ONCE = 1_000
FETCH_SECONDS = 60.0  # after which a client that fetches nothing is disconnected

_NDJSON = frozenset({b"application/x-ndjson", b"application/jsonl", b"application/ndjson"})

log = logging.getLogger(__name__)


class Batches:
    """An ASGI application."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope)
        try:
            caller = await self._context.caller(scope, headers)
            headers.check_type(_NDJSON, MEDIA_TYPE)
            try:
                query_of(scope, ())
            except FieldError as error:
                raise Problem.of_field(error) from None
            if not self._context.outbox.has_room(0):
                raise Problem.later(HTTPStatus.TOO_MANY_REQUESTS, "too many writes wait for Pub/Sub already")
            if self._under_way >= MAX_BATCHES:
                raise Problem.later(HTTPStatus.TOO_MANY_REQUESTS, f"{MAX_BATCHES} batches are under way already")
        except Problem as problem:
            await answer(send, self._context, headers, problem)
            return
        self._under_way += 1
        try:
            await _Batch(self._context, caller, receive, send).run()
        finally:
            self._under_way -= 1


class _Batch:
    """One request under way. Results wait in `_results`, by number, until those before them are sent."""

    def __init__(self, context: GatewayContext, caller: Caller, receive: Receive, send: Send) -> None:
        self._context, self._caller = context, caller
        self._receive, self._send = receive, send
        self._results: dict[int, bytes] = {}
        self._about: dict[int, tuple[int, MessageKind, Message]] = {}  # line, type and message of what is under way
        self._read = self._sent = 0
        self._failed: set[int] = set()  # slots on which nothing more may be published
        self._gone = False  # the client
        self._news = asyncio.Event()  # for the answering side: the next result, or the end
        self._fetched = asyncio.Event()  # for the reading side
        self._ended = False

    async def run(self) -> None:
        answering = asyncio.create_task(self._answer())
        try:
            await self._take_all()
        finally:
            self._ended = True
            self._news.set()
            if self._gone:
                self._context.metrics.abandoned.inc()
            await answering

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _take_all(self) -> None:
        most = self._context.settings.max_body_bytes + LINE_EXTRA_BYTES
        number = 0
        try:
            async for lines in lines_of(self._receive, most, self._context):
                now = self._context.now()
                for line in lines:
                    number += 1
                    if line is None:
                        self._refuse(number, Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"over {most:,} bytes"))
                    elif text := line.strip():
                        await self._make_room(len(text))
                        self._take(number, text, now)
                    if self._gone:
                        return
        except _CutError as cut:
            self._gone = cut.gone
            if cut.problem is not None:
                self._refuse(number + 1, cut.problem)

    async def _make_room(self, size: int) -> None:
        outbox = self._context.outbox
        if not outbox.has_room(size, STREAMS_SHARE):
            await outbox.room(size)
        bucket = self._caller.bucket
        if bucket is not None:
            await bucket.taken()
        while self._read - self._sent >= MAX_RESULTS_HELD and not self._gone:
            self._fetched.clear()
            await self._fetched.wait()

    def _take(self, number: int, line: bytes, now: Any) -> None:
        context = self._context
        try:
            data = fields_of(line)
            kind = context.kind(data["type"])
            context.check_leave(self._caller, kind)
            text = body_text(line, data)
            message = context.encoder.encode(kind, data["body"], text, now, data, LINE, self._caller.client)
            if message.slot not in self._failed:
                context.check_claim(message.claim)
        except LineError as error:
            where = {"pointer": pointer(error.field)} if error.field else {"pointer": "#"}
            self._refuse(number, Problem(HTTPStatus.BAD_REQUEST, str(error), errors=({"detail": str(error), **where},)))
        except FieldError as error:
            self._refuse(number, Problem.of_field(error))
        except Problem as problem:
            self._refuse(number, problem)
        else:
            if message.slot in self._failed:
                self._refuse(number, Problem.not_taken(NotTakenError.behind()))
                return
            self._about[self._read] = (number, kind, message)
            context.outbox.put(message.slot, message.wire, self, self._read)
            self._read += 1

    def _refuse(self, line: int, problem: Problem) -> None:
        self._context.metrics.refused(problem.status)
        self._keep(self._read, _line({"line": line, **_problem_members(problem)}))
        self._read += 1

    # --- answering ----------------------------------------------------------------------------------------------------

    def settle(self, number: int, message_id: str | None, error: NotTakenError | None) -> None:
        """The outbox reports the outcome of a write."""
        line, kind, message = self._about.pop(number)
        if message_id is not None:
            self._context.metrics.accepted[kind.name].inc()
            self._keep(
                number,
                b'{"line":%d,"status":202,"id":%b,%b\n'
                % (line, orjson.dumps(message_id), kind.placement(message.slot)),
            )
            return
        error = error or NotTakenError("Pub/Sub gave no id")
        self._context.not_taken(message.claim, error)
        if not isinstance(error, PublishRefusedError):
            self._failed.add(message.slot)
        problem = Problem.not_taken(error)
        self._context.metrics.refused(problem.status)
        self._keep(number, _line({"line": line, **_problem_members(problem)}))

    def _keep(self, number: int, result: bytes) -> None:
        self._results[number] = result
        if number == self._sent:
            self._news.set()

    async def _answer(self) -> None:
        """Send results as they come. Nothing goes out before the first: a client may wait for leave to send its body."""
        try:
            await self._send_results()
        except BaseException:  # the reading side would wait for ever for results to be fetched
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._gone = True
        self._fetched.set()

    async def _send_results(self) -> None:
        begun = False
        while not (self._ended and self._sent == self._read):
            await self._news.wait()
            self._news.clear()
            while self._sent in self._results and not self._gone:
                await self._tell(b"".join(self._next_run()), begun=begun)
                begun = True
                self._fetched.set()
            if self._gone:
                return
        await self._tell(b"", begun=begun, more=False)

    async def _tell(self, body: bytes, *, begun: bool, more: bool = True) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                if not begun:
                    headers = [(b"content-type", MEDIA_TYPE.encode())]
                    await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except RuntimeError as error:
            if not hung_up(error):
                raise
            self._give_up()
        except TimeoutError:  # the server closes the connection of an answer that isn't complete
            log.warning("a client doesn't fetch its results: its connection is closed", extra={"action": "hung_up"})
            self._give_up()

    def _next_run(self) -> list[bytes]:
        run: list[bytes] = []
        while len(run) < SENT_AT_ONCE and (result := self._results.pop(self._sent, None)) is not None:
            run.append(result)
            self._sent += 1
        return run


def _line(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)


def _problem_members(problem: Problem) -> dict[str, Any]:
    """A problem as a line has it, without the members that every line would repeat."""
    return {name: value for name, value in problem.members().items() if name not in ("type", "title")}


class _CutError(Exception):
    """The body ended early: the client is `gone`, or receives `problem`."""

    def __init__(self, *, gone: bool = False, problem: Problem | None = None) -> None:
        super().__init__()
        self.gone, self.problem = gone, problem


async def lines_of(receive: Receive, most: int, context: GatewayContext) -> AsyncIterator[list[bytes | None]]:
    """The body's lines, many at a time; None stands for one of over `most` bytes, which is never kept. Raises _CutError.

    The line under way is kept apart from what comes, so that each byte is looked at once, in however small parts it comes.
    """
    begun, dropping = bytearray(), False
    with context.outbox.reading() as reading:
        while True:
            event = await _next(receive, context)
            first, *others = event["body"].split(b"\n")
            dropping = dropping or len(begun) + len(first) > most
            begun += first
            lines: list[bytes | None] = []
            if others:
                *whole, last = others
                lines = [None if dropping else bytes(begun)]
                lines += (line if len(line) <= most else None for line in whole)
                begun, dropping = bytearray(last), len(last) > most
            if dropping:
                begun.clear()
            if not event["more_body"]:
                yield [*lines, None if dropping else bytes(begun)]
                return
            if not reading.holds(len(begun)):
                raise _CutError(problem=no_room_to_read())
            yield lines


async def _next(receive: Receive, context: GatewayContext) -> dict[str, Any]:
    try:
        with context.reading(BODY_SECONDS) as limit:
            async with limit:
                event = dict(await receive())
    except TimeoutError:
        if context.stopping.is_set():
            raise _CutError(problem=Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{_CUT} the gateway stops")) from None
        detail = f"{_CUT} nothing came for {BODY_SECONDS:.0f} s"
        raise _CutError(problem=Problem(HTTPStatus.REQUEST_TIMEOUT, detail)) from None
    if event["type"] != "http.request":
        raise _CutError(gone=True)
    return event


_CUT = "neither this line nor any after it was read:"

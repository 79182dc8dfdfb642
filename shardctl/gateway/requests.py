"""An ASGI request: its headers, its query and its body, each within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope, Send

from shardctl.gateway.fields import FieldError
from shardctl.gateway.problems import Problem
from shardctl.gateway.publishing import Outbox, Reading
from shardctl.wire.message import MAX_KEY_CHARACTERS

BODY_SECONDS = 30.0  # a client that stops in the middle of a body is not waited for


class ClientGoneError(Exception):
    """The client has disconnected."""


class Headers:
    """Those that the gateway reads."""

    __slots__ = (
        "authorization",
        "content_encoding",
        "content_length",
        "content_type",
        "idempotency_key",
        "keys_given",
        "prefer",
    )

    def __init__(self, scope: Scope) -> None:
        self.authorization: bytes | None = None
        self.content_type = self.content_encoding = b""
        self.content_length: int | None = None
        self.idempotency_key: bytes | None = None
        self.keys_given = 0
        self.prefer = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                self.content_type = value
            elif name == b"content-length":
                self.content_length = int(value)  # the server has checked it
            elif name == b"idempotency-key":
                self.keys_given += 1
                self.idempotency_key = value
            elif name == b"authorization":
                self.authorization = value
            elif name == b"content-encoding":
                self.content_encoding = value
            elif name == b"prefer":
                self.prefer = b"%b, %b" % (self.prefer, value) if self.prefer else value

    def check_type(self, wanted: Collection[bytes], name: str) -> None:
        """Raise a Problem unless the body is what it should be, in UTF-8 and not compressed."""
        if self.content_type not in wanted:
            media, _, parameters = self.content_type.partition(b";")
            charset = parameters.strip().lower().replace(b'"', b"")
            if media.strip().lower() not in wanted or charset not in (b"", b"charset=utf-8"):
                raise Problem(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be {name}", headers={"Accept": name}
                )
        if self.content_encoding not in (b"", b"identity"):
            raise Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "Content-Encoding isn't supported: send the body uncompressed",
                headers={"Accept-Encoding": "identity"},
            )

    def key_given(self) -> str | None:
        """The idempotency key, which may be in quotes, as the header's draft standard has it."""
        if self.idempotency_key is None:
            return None
        if self.keys_given > 1:
            raise FieldError("Idempotency-Key", "the header is given twice", "header")
        text = self.idempotency_key.decode("latin-1").strip()
        if not (text.isascii() and text.isprintable()):
            raise FieldError("Idempotency-Key", "the header holds more than printable ASCII", "header")
        if len(text) > MAX_KEY_CHARACTERS:
            raise FieldError("Idempotency-Key", f"the header has over {MAX_KEY_CHARACTERS} characters", "header")
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        return text[1:-1] if quoted else text


def query_of(scope: Scope, known: Collection[str]) -> dict[str, str]:
    """The query's parameters, each of which is known and given once. Raises FieldError."""
    text = scope["query_string"]
    if not text:
        return {}
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict")
    except ValueError as error:  # UnicodeDecodeError is one
        raise FieldError("query", "the query isn't UTF-8, percent-encoded", "parameter") from error
    parameters = dict(pairs)
    for name in parameters:
        if name not in known:
            raise FieldError(name[:40], f"there is no such parameter; known: {', '.join(known)}", "parameter")
    if len(parameters) < len(pairs):
        raise FieldError("query", "a parameter is given twice", "parameter")
    return parameters


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
    """Send an answer; False where the client has gone away meanwhile."""
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    except RuntimeError as error:
        if not hung_up(error):
            raise
        return False
    return True


def hung_up(error: RuntimeError) -> bool:
    """Whether it is uvloop's error for a closed connection of which the server hasn't been notified yet."""
    return "handler is closed" in str(error)


async def body_of(receive: Receive, headers: Headers, most: int, outbox: Outbox) -> bytes:
    """The whole body. Raises ClientGoneError; a Problem where it is too large, doesn't come, or finds no room in the outbox."""
    if headers.content_length is not None and headers.content_length > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            event = await receive()
            if event["type"] == "http.request" and not event["more_body"]:
                body: bytes = event["body"]
                if len(body) > most:
                    raise _too_large(most)
                return body
            with outbox.reading() as reading:
                return await _rest(receive, event, most, reading)
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"the body didn't come within {BODY_SECONDS:.0f} s") from None


async def _rest(receive: Receive, event: Message, most: int, reading: Reading) -> bytes:
    body = bytearray()  # parts by themselves would take many times their size, where they are small
    while True:
        if event["type"] != "http.request":
            raise ClientGoneError
        body += event["body"]
        if len(body) > most:
            raise _too_large(most)
        if not reading.holds(len(body)):
            raise no_room_to_read()
        if not event["more_body"]:
            return bytes(body)
        event = await receive()


def no_room_to_read() -> Problem:
    return Problem.later(HTTPStatus.TOO_MANY_REQUESTS, "too many bodies are being read already")


def _too_large(most: int) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a write may take {most:,} bytes")

"""One connection: uvicorn's protocol for HTTP/1.1 on httptools, with bounds that uvicorn lacks.

httptools keeps the header that it is reading, however long, and uvicorn every header and trailer; neither has a timeout. So the
bytes are counted outside: at most `head_bytes` may arrive without completing a head or bringing a part of a body.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shardctl.serving.limits import Limits
from shardctl.serving.room import Room

READ_BYTES = 8 * 1024  # at once of one connection: whole requests fit, and many connections together still need little
LINGER_SECONDS = 2.0  # for the last answer to go out before a connection that is closed is cut


class _TooMuchError(Exception):
    """Ends parsing; the parser reports that there was an error, not which."""


class Connection(HttpToolsProtocol):
    """`room` and `limits` are the server's; the rest is uvicorn's own."""

    def __init__(self, room: Room, limits: Limits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.room, self.limits = room, limits
        self._loose_bytes = 0  # since a head was complete, or a part of a body came
        self._in_head = False
        self._refusal = http.HTTPStatus.BAD_REQUEST
        self._why = ""  # in place of the parser's words
        self._over = False  # nothing more is read; pending answers are still sent
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    # --- the connection's life ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.room.enter(self):
            self._expect_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.leave(self)
        self._stop_head_timer()
        self._stop_unread_timer()
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset, and it would keep all of this for its time
        super().connection_lost(exc)

    @property
    def is_held_up(self) -> bool:
        return self.flow.read_paused

    def evict(self) -> None:
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self._is_answering:
            return
        if self._in_head:
            self._refusal = http.HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("The request's head did not come in time.")
        else:
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    # --- what comes ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._loose_bytes += len(data)
        self.room.heard(self)
        super().data_received(data)
        if self._over or self.transport.is_closing():
            return
        if self._loose_bytes > self.limits.head_bytes:
            self._refuse_head()
            self.send_400_response("The request's head is too long.")
        elif self._is_answering:
            if self.cycle.more_body and self.cycle.body:
                self.flow.pause_reading()  # until the application has taken this part
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def _refuse_head(self) -> None:
        self._refusal = (
            http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._in_head else http.HTTPStatus.BAD_REQUEST
        )

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: no part of the head that the application has seen already
        if len(self.headers) >= self.limits.headers:
            self._refuse_head()
            raise _TooMuchError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._loose_bytes > self.limits.head_bytes and self._head_bytes() > self.limits.head_bytes:
            self._refuse_head()
            raise _TooMuchError
        if self._is_answering and len(self.pipeline) >= self.limits.pipelined:
            raise _TooMuchError
        if self.parser.should_upgrade() and self._has_body():
            self._why = "The connection can't be upgraded: send the body without Upgrade, by HTTP/1.1 alone."
            raise _TooMuchError  # the parser takes what follows for another protocol's, and would report an empty body
        self._loose_bytes, self._in_head = 0, False
        self._stop_head_timer()
        super().on_headers_complete()

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" \t0"))
            for name, value in self.headers
        )

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose_bytes = 0
        super().on_message_complete()
        if self._is_answering:
            self.room.settle(self)
        else:  # answered before its end: the connection is idle again
            self._stop_head_timer()
            self._keep_alive()

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    # --- what goes out ------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse the input. Pending answers to earlier requests are sent instead, and then the connection closes."""
        self._over, msg = True, self._why or msg
        if not self._is_answering:
            self._write_refusal(msg)
        elif self.cycle.more_body:  # its own body is what is at fault, or stands before what is
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
            else:
                self._write_refusal(msg)
        else:
            self.cycle.keep_alive = False

    def _write_refusal(self, msg: str) -> None:
        body = msg.encode("ascii")
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (self._refusal, self._refusal.phrase.encode(), len(body), body)
        )
        self.transport.close()
        self._linger()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()
        elif not self._is_answering or self.cycle.more_body:
            self.room.await_from(self)
            if self._in_head and self._head_timer is None:  # the next one began while this one was answered
                self._expect_head()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._linger()

    def _linger(self) -> None:
        """Abort a closed transport, which would wait forever for its client to fetch the rest."""
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()


class Reader(asyncio.BufferedProtocol):
    """Hands a connection what comes in small parts. The event loops' own reads are of 256 KB, and of each connection that has
    something to read before any application is given any of it.

    `buffer` may be that of all connections of one event loop, since what was read is copied at once. Not of several: another
    thread's read would come between.
    """

    def __init__(self, connection: Connection, buffer: memoryview) -> None:
        self._connection, self._buffer = connection, buffer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the protocol's form
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._buffer[:nbytes]))

"""The HTTP endpoint for Pub/Sub's pushes: who calls, for which subscription, with what; the answer once the write is committed.

Pub/Sub takes 2xx for an ack and anything else for a refusal, after which it sends the message again.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from consumer.intake.push import request as pushed
from consumer.intake.push.caller import Caller, NoTokenError, WrongCallerError, caller_of
from consumer.intake.push.intake import ClosedError, FullError, Inlet, PushIntake
from consumer.observability.metrics import Metrics
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.oidc import KeysUnavailableError, TokenError
from shardctl.serving.server import Server
from shardctl.serving.sockets import bind

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024**2  # the largest message, 10 MB, in base64 and with its attributes
READ_SECONDS = 30.0


class RefusalError(Exception):
    """The answer to Pub/Sub instead of an ack."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


def _too_long() -> RefusalError:
    return RefusalError(413, f"over {MAX_BODY_BYTES:,} bytes")


class Endpoint:
    """Listens from the start, so that a port in use is an error at once; serves as soon as there is an intake."""

    def __init__(self, host: str, port: int, caller: Caller, attributes: tuple[str, ...], metrics: Metrics) -> None:
        self._caller, self._attributes, self._metrics = caller, attributes, metrics
        self._socket = bind(host, port, "pushes", "Free the port, or take another with PUSH_PORT.")
        self.port: int = self._socket.getsockname()[1]
        app = Starlette(
            routes=[
                Route("/", self._status, methods=["GET"]),  # the default health check of load balancers
                Route("/{path:path}", self._push, methods=["POST"]),
            ]
        )
        self._server = Server(app)
        self._intake: PushIntake | None = None

    @property
    def is_open(self) -> bool:
        return self._server.is_open

    async def serve(self, intake: PushIntake) -> None:
        self._intake = intake
        try:
            await self._server.serve_on(self._socket)
        except asyncio.CancelledError:  # answers that don't go out: their callers are cut off
            self._server.stop(at_once=True)
            raise

    def close(self) -> None:
        self._server.stop()

    async def _status(self, _: Request) -> Response:
        ready = self._intake is not None and self._intake.connected
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def _push(self, request: Request) -> Response:
        try:
            await self._authenticate(request)
            await self._take(request, *self._inlet(request))
        except RefusalError as refusal:
            self._metrics.push_refused.labels(str(refusal.status)).inc()
            return PlainTextResponse(f"{refusal}\n", refusal.status, refusal.headers)
        return Response(status_code=204)

    async def _authenticate(self, request: Request) -> None:
        """Verify that Pub/Sub sends it on behalf of this fleet. Raises RefusalError."""
        try:
            await self._caller.check(request.headers.get("authorization", ""))
        except (NoTokenError, TokenError) as error:
            raise RefusalError(401, str(error), {"WWW-Authenticate": "Bearer"}) from error
        except WrongCallerError as error:
            raise RefusalError(403, str(error)) from error
        except KeysUnavailableError as error:
            log.warning("a push can't be authenticated: %s", error, extra={"action": "push_unjudged"})
            raise RefusalError(503, "the token can't be verified now") from error

    def _inlet(self, request: Request) -> tuple[PushIntake, Inlet]:
        """The subscription that the path ends in."""
        intake = self._intake
        if intake is None:
            raise RefusalError(503, "not ready: no messages are accepted yet")
        name = request.path_params["path"].rstrip("/").rpartition("/")[2]
        if name not in intake.inlets:
            raise RefusalError(404, f"no subscription {name[:300]!r} is served here")
        if not pushed.is_unwrapped(request.headers) and not _is_json(request.headers):
            raise RefusalError(415, "a wrapped message is application/json")
        return intake, intake.inlets[name]

    async def _take(self, request: Request, intake: PushIntake, inlet: Inlet) -> None:
        """Returns once the message's write is committed, or the message is durably dead-lettered or parked."""
        try:
            body = await _body(request, intake, inlet)
            received = pushed.read(intake.ack_id(), inlet.subscription, body, request.headers, self._attributes)
            done = await intake.take(inlet, received)
        except pushed.BadPushError as error:
            log.warning("a push to %s is refused: %s", inlet.subscription, error, extra={"action": "push_refused"})
            raise RefusalError(400, str(error)) from error
        except FullError as error:
            raise RefusalError(429, "too many messages are in flight") from error
        except ClosedError as error:
            raise RefusalError(503, "no messages are accepted now") from error
        if not done:
            raise RefusalError(503, "not committed: send it again")


async def _body(request: Request, intake: PushIntake, inlet: Inlet) -> bytes:
    """The request's body, which counts as in flight while it is read. Raises RefusalError or RefusedError."""
    length = request.headers.get("content-length", "")
    size = int(length[:20]) if length.isdecimal() else MAX_BODY_BYTES
    if size > MAX_BODY_BYTES:
        raise _too_long()
    received = bytearray()
    with intake.admitted(inlet, size):
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for part in request.stream():
                    received += part
                    if len(received) > MAX_BODY_BYTES:  # whatever its header says
                        raise _too_long()
        except TimeoutError as error:
            raise RefusalError(408, "the body didn't arrive in time") from error
        except ClientDisconnect as error:
            raise RefusalError(400, "the caller disconnected") from error
    return bytes(received)


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def endpoint_of(config: ShardConfig, host: str, port: int, keys_url: str | None, metrics: Metrics) -> Endpoint:
    """The shard's endpoint. Raises UsageError where it can't listen."""
    attributes = tuple(config.attributes.model_dump().values())
    return Endpoint(host, port, caller_of(config.delivery, keys_url), attributes, metrics)

"""The service as gRPC handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from google.rpc.status_pb2 import Status

from shardctl.broker.errors import RefusedError
from shardctl.broker.method import Method
from shardctl.broker.protos import Proto, of
from shardctl.broker.service import Service
from shardctl.broker.unsupported import IAM, refusal

ADMIN = "shardctl.local.Broker"


def handlers(service: Service) -> Sequence[Any]:
    """What a grpc.aio server registers."""
    tables = {
        "google.pubsub.v1.Publisher": _unary(service, service.publisher),
        "google.pubsub.v1.Subscriber": _unary(service, service.subscriber) | _waiting(service),
        "google.pubsub.v1.SchemaService": _unary(service, service.schemas),
        ADMIN: {"Stats": _admin(service.stats), "Faults": _admin(service.faults)},
    }
    return [*(grpc.method_handlers_generic_handler(name, table) for name, table in tables.items()), _Refusals()]


def _unary(service: Service, methods: Mapping[str, Method]) -> dict[str, Any]:
    return {name: _handler(service, name, method) for name, method in methods.items()}


def _handler(service: Service, name: str, method: Method) -> Any:
    async def call(request: Proto, context: Any) -> bytes:
        try:
            reply = await service.call(name, request)
        except RefusedError as refused:
            return await _abort(context, refused)
        return bytes(reply.SerializeToString())

    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=of(method.request).FromString)


def _waiting(service: Service) -> dict[str, Any]:
    """The methods that wait for messages."""

    async def pull(request: Proto, context: Any) -> bytes:
        try:
            return await service.pull(request, context.time_remaining())
        except RefusedError as refused:
            return await _abort(context, refused)

    async def stream(_requests: Any, context: Any) -> None:
        try:
            await service.stream(context)
        except RefusedError as refused:
            await _abort(context, refused)

    return {
        "Pull": grpc.unary_unary_rpc_method_handler(pull, request_deserializer=of("PullRequest").FromString),
        "StreamingPull": grpc.stream_stream_rpc_method_handler(
            stream, request_deserializer=of("StreamingPullRequest").FromString
        ),
    }


def _admin(handler: Callable[[bytes], bytes]) -> Any:
    async def call(request: bytes, context: Any) -> bytes:
        try:
            return handler(request)
        except RefusedError as refused:
            return await _abort(context, refused)

    return grpc.unary_unary_rpc_method_handler(call)


class _Refusals(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # the stubs alone know arguments
    """Of every method of the service that the broker hasn't."""

    def service(self, handler_call_details: Any) -> Any:
        service, _, name = handler_call_details.method.removeprefix("/").partition("/")
        if service != IAM:
            return None

        async def call(_request: bytes, context: Any) -> bytes:
            return await _abort(context, refusal(name))

        return grpc.unary_unary_rpc_method_handler(call)


async def _abort(context: Any, refused: RefusedError) -> bytes:
    """Ends the call; the error details list the ack ids that failed permanently, as the client library reads them."""
    code = grpc.StatusCode[refused.code]
    trailing: tuple[tuple[str, bytes], ...] = ()
    if refused.details:
        status = Status(code=code.value[0], message=refused.message, details=refused.details)
        trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, refused.message, trailing)
    return b""

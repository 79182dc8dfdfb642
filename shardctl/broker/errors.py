"""What the broker answers instead of a result: one class a status code, the text as the client will read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo


class RefusedError(Exception):
    """A call the service would refuse: the name of a gRPC status, and the details that a google.rpc.Status carries."""

    code = "UNKNOWN"
    details: Sequence[Any] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgumentError(RefusedError):
    code = "INVALID_ARGUMENT"


class NotFoundError(RefusedError):
    code = "NOT_FOUND"


class AlreadyExistsError(RefusedError):
    code = "ALREADY_EXISTS"


class FailedPreconditionError(RefusedError):
    code = "FAILED_PRECONDITION"


class UnimplementedError(RefusedError):
    """The service could do it, and this broker can't."""

    code = "UNIMPLEMENTED"


class UnavailableError(RefusedError):
    """An injected fault: the call may or may not have taken effect; the client tries again."""

    code = "UNAVAILABLE"


class AckIdsError(InvalidArgumentError):
    """Some ack ids of an exactly-once subscription were stale; `failures` maps each to its permanent failure."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__("Some acknowledgement ids in the request were invalid: they have expired or are malformed.")
        info = ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", domain="pubsub.googleapis.com", metadata=failures)
        detail = Any()
        detail.Pack(info)
        self.details = (detail,)

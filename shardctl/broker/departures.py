"""Clients that leave in the middle of a call, and what gRPC logs of them."""

from __future__ import annotations

import logging

import grpc

from shardctl.broker.handlers import ADMIN
from shardctl.broker.unsupported import IAM

_SERVICES = ("google.pubsub.v1.", IAM, ADMIN)
_FAILED_SEND = 'Failed "execute_batch"'  # a batch at fault in itself isn't begun: "Failed grpc_call_start_batch"

_grpc_log = logging.getLogger("grpc._cython.cygrpc")
_log = logging.getLogger(__name__)


def quieten() -> None:
    """Log at DEBUG, and without a traceback, that a client of the broker left before all was sent to it.

    gRPC ignores a failed send only if it already knows that the client is gone. The failure may come first, and then gRPC logs an
    error with a traceback. All other errors, and other servers of this process, are logged as before. May be called repeatedly.
    """
    _grpc_log.addFilter(_stays)


def _stays(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    text = record.getMessage()
    if (
        isinstance(error, grpc.aio.InternalError)
        and str(error).startswith(_FAILED_SEND)
        and any(f"[/{service}" in text for service in _SERVICES)
    ):
        _log.debug("a client left before its reply was sent: %s", text)
        return False
    return True

"""Which of gRPC's errors the log is spared."""

from __future__ import annotations

import logging

import grpc
import pytest

from shardctl.broker import departures

FAILED_SEND = 'Failed "execute_batch": (<grpc._cython.cygrpc.SendMessageOperation object at 0x7f>,)'
PULL = "ExecuteBatchError raised in core by servicer method [/google.pubsub.v1.Subscriber/Pull]"
OTHERS = "ExecuteBatchError raised in core by servicer method [/example.v1.Service/Call]"


@pytest.mark.parametrize(
    ("text", "error", "logged"),
    [
        (PULL, grpc.aio.InternalError(FAILED_SEND), False),
        (PULL, grpc.aio.InternalError("Failed grpc_call_start_batch: 8"), True),
        (PULL, ValueError(FAILED_SEND), True),
        (OTHERS, grpc.aio.InternalError(FAILED_SEND), True),
        ("no error at all", None, True),
    ],
    ids=["a client left", "a send at fault", "another error", "another server", "no error"],
)
def test_a_client_that_leaves_is_no_error(caplog, text, error, logged):
    departures.quieten()
    departures.quieten()
    caplog.set_level(logging.DEBUG)
    logging.getLogger("grpc._cython.cygrpc").error(text, exc_info=error)
    assert [record.levelno for record in caplog.records] == [logging.ERROR if logged else logging.DEBUG]
    assert bool(caplog.records[0].exc_info) == bool(error and logged)

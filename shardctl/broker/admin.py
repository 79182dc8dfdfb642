"""Read the state of a running broker's subscriptions, and set its faults, from any process."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import grpc

from shardctl.broker.faults import Faults
from shardctl.broker.handlers import ADMIN

TIMEOUT_SECONDS = 10.0


def stats(host: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    """`{"subscriptions": {full name: {"topic", "undelivered", "outstanding", "oldest_unacked_age_seconds", "streams",
    "counts"}}, "topics": […], "messages_published": n}`; `host` is address:port.
    """
    return dict(json.loads(_call(host, "Stats", b"", timeout_seconds)))


def set_faults(host: str, faults: Faults | None = None, /, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Replaces the broker's faults; none given, none injected."""
    body = json.dumps(dataclasses.asdict(faults or Faults())).encode()
    _call(host, "Faults", body, timeout_seconds)


def _call(host: str, method: str, body: bytes, timeout_seconds: float) -> bytes:
    with grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/{ADMIN}/{method}", bytes, bytes)
        return bytes(call(body, timeout=timeout_seconds, wait_for_ready=True))

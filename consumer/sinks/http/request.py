"""A write as a request: its body as it came, and headers into which no message can inject another. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote

import orjson

from consumer.delivery import Delivery

# All visible characters but '%': two texts never become one header, and no header ends early.
_AS_IT_IS = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_STATE = re.compile(r"[ -~]{1,512}")
_CLIENT_PREFIX = "googclient_"  # Google's client libraries put theirs before the standard's names


def headers(delivery: Delivery) -> dict[str, str]:
    return {
        "Content-Type": content_type(delivery.message.data),
        "Idempotency-Key": delivery.identity.hex(),  # a key alone may be another caller's or another type's too
        "X-Shardctl-Type": encoded(delivery.message_type),
        "X-Shardctl-Operation": delivery.operation,
        "X-Shardctl-Key": encoded(delivery.partition_key),
        "X-Shardctl-Message-Id": encoded(delivery.message_id),
        "X-Shardctl-Idempotency-Key": encoded(delivery.idempotency_key),
        **_trace(delivery),
    }


def encoded(text: str) -> str:
    """Text as a header's value: what isn't visible ASCII, and '%', percent-encoded as in a URL."""
    return quote(text, safe=_AS_IT_IS, errors="surrogatepass")


def content_type(data: bytes) -> str:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return "application/octet-stream"
    return "application/json"


def _trace(delivery: Delivery) -> dict[str, str]:
    """The producer's trace context, if it is valid, so that the trace goes on at the backend."""
    attributes = delivery.message.attributes
    for prefix in ("", _CLIENT_PREFIX):
        parent = attributes.get(f"{prefix}traceparent", "")
        if _TRACE_PARENT.fullmatch(parent):
            # Blanks around it make a header that can't be sent.
            state = attributes.get(f"{prefix}tracestate", "").strip()
            return {"traceparent": parent} | ({"tracestate": state} if _TRACE_STATE.fullmatch(state) else {})
    return {}

"""A push request as the message it carries. Pure.

Pub/Sub sends either a JSON object with the message in it, or the message's data as the body and all else as headers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from consumer.pubsub.protos import ReceivedMessage

METADATA = "x-goog-pubsub-"  # before the name of what isn't an attribute, where the body is the data
MESSAGE_ID = f"{METADATA}message-id"

# Headers that an HTTP client, a proxy or a load balancer adds. A message's attribute of such a name is lost to dead letters: a
# token must not get into them.
_NOT_ATTRIBUTES = frozenset({
    "accept", "accept-encoding", "accept-language", "authorization", "cache-control", "connection", "content-encoding",
    "content-length", "content-type", "cookie", "expect", "forwarded", "from", "host", "keep-alive", "proxy-authorization", "te",
    "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent", "via",
})  # fmt: skip
_NOT_PREFIXES = ("x-goog-", "x-forwarded-", "x-cloud-trace-", "x-envoy-", "x-request-", "x-real-", "sec-")


class BadPushError(Exception):
    """The request isn't one that Pub/Sub sends for this subscription; the text says what is wrong with it."""


def is_unwrapped(headers: Mapping[str, str]) -> bool:
    """Whether the body is the data itself. Both forms are accepted, since a subscription may change from one to the other."""
    return MESSAGE_ID in headers


def read(ack_id: str, subscription: str, body: bytes, headers: Mapping[str, str], known: Iterable[str]) -> Any:
    """The `ReceivedMessage` that a pull would have returned, of the subscription with this id. Raises BadPushError.

    `headers` have lower-case names; `known` are attributes whose names keep the case in which they are written here.
    """
    if is_unwrapped(headers):
        return _unwrapped(ack_id, subscription, body, headers, known)
    return _wrapped(ack_id, subscription, body)


def _wrapped(ack_id: str, subscription: str, body: bytes) -> Any:
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadPushError(f"the body is no JSON: {error}") from error
    message = envelope.get("message") if isinstance(envelope, dict) else None
    if not isinstance(message, dict):
        raise BadPushError("the body has no `message`")
    _check_subscription(envelope.get("subscription"), subscription)
    attributes = message.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise BadPushError("`attributes` aren't texts by name")
    attempt = envelope.get("deliveryAttempt") or 0
    if not isinstance(attempt, int) or not 0 <= attempt < 1 << 31:
        raise BadPushError("`deliveryAttempt` is no number")
    return _received(
        ack_id,
        _data(message.get("data") or ""),
        attributes,
        _text(message, "messageId"),
        _text(message, "publishTime"),
        message.get("orderingKey") or "",
        attempt,
    )


def _unwrapped(ack_id: str, subscription: str, body: bytes, headers: Mapping[str, str], known: Iterable[str]) -> Any:
    _check_subscription(headers.get(f"{METADATA}subscription-name"), subscription)
    written = {name.lower(): name for name in known}  # header names come in any case
    attributes = {
        written.get(name, name): _as_sent(value)
        for name, value in headers.items()
        if name in written or not (name in _NOT_ATTRIBUTES or name.startswith(_NOT_PREFIXES))
    }
    attempt = headers.get(f"{METADATA}delivery-attempt", "0")
    return _received(
        ack_id,
        body,
        attributes,
        headers[MESSAGE_ID],
        headers.get(f"{METADATA}publish-time", ""),
        headers.get(f"{METADATA}ordering-key", ""),
        int(attempt) if attempt.isdecimal() and len(attempt) < 10 else 0,
    )


def _as_sent(value: str) -> str:
    """An attribute's text, which travels as UTF-8: HTTP servers take the bytes of headers for Latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _received(
    ack_id: str, data: bytes, attributes: Mapping[str, str], ident: str, published: str, key: Any, attempt: int
) -> Any:
    time = Timestamp()
    try:
        time.FromJsonString(published)
        return ReceivedMessage(
            ack_id=ack_id,
            message={
                "data": data,
                "attributes": attributes,
                "message_id": ident,
                "publish_time": time,
                "ordering_key": key,
            },
            delivery_attempt=attempt,
        )
    except (ValueError, TypeError) as error:  # also half a surrogate pair, which no text in protobuf may hold
        raise BadPushError(f"the message can't be read: {error}") from error


def _check_subscription(named: object, expected: str) -> None:
    """A message on another subscription's path would count as one of another generation."""
    if named is not None and (not isinstance(named, str) or named.rpartition("/")[2] != expected):
        raise BadPushError(f"the request is for another subscription than its path, {expected}")


def _data(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadPushError(f"`data` isn't base64: {error}") from error


def _text(message: Mapping[str, Any], name: str) -> str:
    text = message.get(name)
    if not isinstance(text, str) or not text:
        raise BadPushError(f"the message has no `{name}`")
    return text

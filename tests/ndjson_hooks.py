"""Teaches schemathesis to send JSON lines, and what JSON Schema can't say of a body: see docs/gateway.md."""

import json
import uuid

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def map_body(ctx, body):
    return {name: _sayable(value) for name, value in body.items()} if isinstance(body, dict) else body


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """A sound idempotency key is used once: with another body it would rightly be a 422."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.isascii() and key.isprintable() and 0 < len(key.strip(' "')) < 256:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex


def _sayable(value):
    """1.0 is no whole number here, a decimal has an end, and no text in JSON holds a NUL."""
    if isinstance(value, float):
        return (
            int(value) if value.is_integer() and abs(value) < 1e30 else round(value, 10) if abs(value) < 1e15 else 0.5
        )
    if isinstance(value, list):
        return [_sayable(part) for part in value]
    if isinstance(value, dict):
        return {name.replace("\x00", ""): _sayable(part) for name, part in value.items()}
    return value

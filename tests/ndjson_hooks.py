"""Teaches schemathesis to send JSON lines, and that 1.0 is no whole number here, though JSON Schema takes it for one."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def map_body(ctx, body):
    if isinstance(body, dict):
        return {name: int(of) if isinstance(of, float) and of.is_integer() else of for name, of in body.items()}
    return body

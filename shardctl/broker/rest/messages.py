"""Requests as protobuf messages, and replies as JSON, by the mapping of `google.api.http` and protobuf's own JSON form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson
from google.protobuf import json_format

from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.protos import Proto
from shardctl.broker.rest.routes import Match

# Parameters of Google's APIs that every method has. What they ask for is either done (`$alt`) or changes no meaning.
SYSTEM_PARAMETERS = frozenset(
    {
        "$.xgafv",
        "$alt",
        "access_token",
        "alt",
        "fields",
        "key",
        "oauth_token",
        "prettyPrint",
        "quotaUser",
        "uploadType",
        "upload_protocol",
    }
)
ENUMS_AS_NUMBERS = "json;enum-encoding=int"
_MAX_DEPTH = 32  # of messages in each other; none of google.pubsub.v1 needs as many
_MAX_PARAMETERS = 100


def parameters_of(query: bytes) -> dict[str, list[str]]:
    """Each parameter's values, in order. Raises InvalidArgumentError."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise InvalidArgumentError(f"Invalid query: {error}. It must be UTF-8, percent-encoded.") from error
    parameters: dict[str, list[str]] = {}
    for name, value in pairs:
        parameters.setdefault(name, []).append(value)
    for alt in parameters.get("alt", ()):
        if alt != "json":
            raise InvalidArgumentError(f"Invalid query: alt={alt!r}. This broker answers in JSON only.")
    return parameters


def request_of(kind: Any, match: Match, parameters: Mapping[str, list[str]], body: bytes) -> Proto:
    """A request from its three parts: what the path holds wins over the rest. Raises InvalidArgumentError."""
    content = _content(kind, match.route.body, body)
    for name, values in parameters.items():
        if name not in SYSTEM_PARAMETERS:
            if match.route.body == "*":
                raise InvalidArgumentError(
                    f"Unknown query parameter {name!r}: this method takes its fields in the body."
                )
            _place(content, kind.DESCRIPTOR, name, values)
    request = kind()
    try:
        json_format.ParseDict(content, request, max_recursion_depth=_MAX_DEPTH)
        for path, value in match.values.items():
            *parents, last = path.split(".")
            target = request
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, last, value)
    # The parser reports most of what it can't read by an error of its own, and the rest by whatever it stumbles over.
    except Exception as error:
        raise InvalidArgumentError(f"Invalid JSON payload received. {error}") from error
    return request


def reply_of(message: Proto, parameters: Mapping[str, list[str]]) -> bytes:
    as_numbers = ENUMS_AS_NUMBERS in parameters.get("$alt", ())
    return orjson.dumps(json_format.MessageToDict(message, use_integers_for_enums=as_numbers))


def _content(kind: Any, field: str, body: bytes) -> dict[str, Any]:
    """The JSON object that a request is read from, still without the fields of the query."""
    if not field:
        if body.strip() not in {b"", b"{}"}:
            raise InvalidArgumentError("This method takes no body.")
        return {}
    try:
        content = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"Invalid JSON payload received. {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"Invalid JSON payload received. A {kind.DESCRIPTOR.name} is an object.")
    return content if field == "*" else {field: content}


def _place(content: dict[str, Any], descriptor: Any, path: str, values: list[str]) -> None:
    """Puts a parameter such as `pageSize=10` or `policy.options=3` where the body would have it."""
    *parents, last = path.split(".")
    for parent in parents:
        field = _field(descriptor, parent, path)
        if field.message_type is None or field.is_repeated:
            raise _unknown(path)
        descriptor, content = field.message_type, content.setdefault(field.json_name, {})
    field = _field(descriptor, last, path)
    if len(values) > 1 and not field.is_repeated:
        raise InvalidArgumentError(f"Invalid query: {path} is given {len(values)} times, and holds one value.")
    plain = [_plain(field, value) for value in values]
    content[field.json_name] = plain if field.is_repeated else plain[0]


def _field(descriptor: Any, name: str, path: str) -> Any:
    """By either name: `page_size` or `pageSize`."""
    for field in descriptor.fields:
        if name in {field.name, field.json_name}:
            return field
    raise _unknown(path)


def _unknown(path: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"Unknown query parameter {path[:100]!r}.")


def _plain(field: Any, value: str) -> Any:
    """A truth value as JSON has it; protobuf's JSON form takes everything else as text, too."""
    return {"true": True, "false": False}.get(value, value) if field.type == field.TYPE_BOOL else value

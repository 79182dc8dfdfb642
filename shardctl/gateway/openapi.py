"""The API of one fleet as OpenAPI 3.1: a path for each message type, its body as JSON Schema. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from shardctl.fleet.settings.columns import ColumnType
from shardctl.fleet.settings.gateway import OPEN, Gateway
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet
from shardctl.outcomes.effect import State
from shardctl.wire.bodies import Rules
from shardctl.wire.message import MAX_KEY_CHARACTERS, OPERATIONS
from shardctl.wire.values import Limits, Room, strictest

Schema = dict[str, Any]

_KEY_PATTERN = r"^[^\u0000-\u001f]+$"
_PADDED_KEY_PATTERN = r"^[^\u0000-\u001f]*[^\u0000- ]$"
_HEADER_PATTERN = r'^(?! *"" *$)[ -~]*[!-~][ -~]*$'
_TIME = {"type": "string", "format": "date-time", "description": "RFC 3339, with Z or an offset."}


def document(fleet: Fleet) -> Schema:
    settings, limits = fleet.gateway or OPEN, strictest(fleet.databases)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Writes into {fleet.fleet}",
            "version": version("shardctl"),
            "description": "Each write is answered with 202 once Pub/Sub has it, and takes effect later, once.",
        },
        "paths": {
            **{
                f"/v1/writes/{name}": {"post": _write(name, kind, settings)}
                for name, kind in fleet.message_types.items()
            },
            "/v1/writes": {"post": _batch(settings)},
            **(_lookups(fleet, settings) if settings.outcomes else {}),
        },
        "components": {
            "schemas": {
                **{_component(name): body_of(kind, limits) for name, kind in fleet.message_types.items()},
                "Accepted": _accepted(settings),
                **({"Outcome": _OUTCOME} if settings.outcomes else {}),
                "Problem": _PROBLEM,
                "Line": _line(fleet),
                "Result": _RESULT,
            },
            **_security_schemes(settings),
        },
    }


def body_of(kind: MessageType, limits: Limits) -> Schema:
    """What a body of that type may hold."""
    if not kind.columns:
        field = kind.routing_field
        return {"type": "object", "properties": {field: _KEY_VALUE}}
    required = [*kind.key]
    if kind.version_column and kind.version_column not in required:
        required.append(kind.version_column)
    rules = Rules(kind, limits, at_entry=True)
    properties = {
        column: _column(column_type, rules.room(column), nullable=column not in required) | _length(kind, column)
        for column, column_type in kind.types.items()
    }
    if kind.time_bucket is not None:
        field = kind.time_bucket.field
        properties[field] = _column(kind.types[field], rules.room(field), nullable=False)
        required = list(dict.fromkeys([*required, field]))
    for column in kind.key:
        if kind.types[column] == "text" and limits.pads_keys:
            properties[column]["pattern"] = r"^[^\u0000]*[^\u0000 ]$"
    routed = kind.routing_field
    if kind.types[routed] == "text":
        properties[routed] = {
            "type": "string",
            "minLength": 1,
            "maxLength": min(kind.lengths.get(routed, MAX_KEY_CHARACTERS), MAX_KEY_CHARACTERS),
            "pattern": _PADDED_KEY_PATTERN if limits.pads_keys and routed in kind.key else _KEY_PATTERN,
        }
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _column(column_type: ColumnType, room: Room, *, nullable: bool) -> Schema:
    schema: Schema = dict(_COLUMNS[column_type])
    if column_type == "decimal":
        schema |= {"pattern": _pattern_of(room), "description": f"With at most {room}."}
    if nullable and "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = [*kinds, "null"]
    return schema


def _length(kind: MessageType, column: str) -> Schema:
    return {"maxLength": kind.lengths[column]} if column in kind.lengths else {}


def _pattern_of(room: Room) -> str:
    """Of a decimal as text. No exponent: what fits would depend on it."""
    whole, places = min(room.whole_digits, _MOST_REPEATS), min(room.places, _MOST_REPEATS)
    if room.significant_digits is not None:
        whole = places = room.significant_digits // 2
    return (
        rf"^[-+]?0*[0-9]{{1,{whole}}}(\.[0-9]{{0,{places}}}0*)?$" if whole else rf"^[-+]?0+(\.[0-9]{{0,{places}}}0*)?$"
    )


_MOST_REPEATS = 1_000  # of a part of a pattern that every reader takes
_COLUMNS: Mapping[ColumnType, Schema] = {
    "text": {"type": "string", "pattern": r"^[^\u0000]*$"},
    "integer": {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1, "format": "int32"},
    "bigint": {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1, "format": "int64"},
    "number": {"type": "number"},
    "decimal": {"type": ["number", "string"]},
    "boolean": {"type": "boolean"},
    "timestamp": {"type": "string", "format": "date-time", "pattern": r"(Z|[-+](0[0-9]|1[0-5]):[0-5][0-9])$"},
    "date": {"type": "string", "format": "date", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    "uuid": {"type": "string", "format": "uuid", "pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    "bytes": {
        "type": "string",
        "contentEncoding": "base64",
        "pattern": r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$",
    },
    "json": {},
}
_KEY_VALUE: Schema = {
    "type": ["string", "integer"],
    "description": "The routing key; it may be left out where the parameter `key` is given.",
    "minLength": 1,
    "maxLength": MAX_KEY_CHARACTERS,
    "pattern": _KEY_PATTERN,
}


def _key_parameter() -> Schema:
    return _parameter(
        "key",
        "query",
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": _KEY_PATTERN},
    )


def _parameter(name: str, place: str, schema: Schema) -> Schema:
    return {"name": name, "in": place, "required": False, "description": _MEANS[name], "schema": schema}


def _write(name: str, kind: MessageType, settings: Gateway) -> Schema:
    body = {"$ref": f"#/components/schemas/{_component(name)}"}
    return {
        "operationId": f"write_{_component(name)}",
        "summary": f"Take one write of type {name}",
        "parameters": [
            _parameter("Idempotency-Key", "header", {"type": "string", "maxLength": 255, "pattern": _HEADER_PATTERN}),
            *([] if kind.routing_field in kind.key else [_key_parameter()]),  # there it can only repeat the body
            _parameter("operation", "query", {"type": "string", "enum": list(OPERATIONS)}),
            _parameter("timestamp", "query", _TIME),
            *([_parameter("Prefer", "header", _PREFER)] if settings.outcomes else []),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            **({"200": _applied()} if settings.outcomes else {}),
            "202": {
                "description": "Pub/Sub has it.",
                "content": _json("Accepted"),
                **({"headers": _PLACE} if settings.outcomes else {}),
            },
            **_problems("400", "404", "408", "413", "415", "422", "429", "503"),
            **_unless_open(settings),
        },
        **_security(settings),
    }


def _applied() -> Schema:
    return {
        "description": "It has taken effect. Only a request that would wait for that gets this answer.",
        "content": _json("Accepted"),
        "headers": _PLACE,
    }


def _lookups(fleet: Fleet, settings: Gateway) -> Schema:
    return {
        f"/v1/writes/{name}/{{key}}/{{idempotency_key}}": {"get": _lookup(name, kind, settings)}
        for name, kind in fleet.message_types.items()
    }


def _lookup(name: str, kind: MessageType, settings: Gateway) -> Schema:
    of_path = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": _KEY_PATTERN}
    at: Schema = {"name": "at", "in": "query", "required": True, "description": _AT, "schema": _TIME}
    return {
        "operationId": f"outcome_{_component(name)}",
        "summary": f"What became of a write of type {name} that this client has sent",
        "parameters": [
            {**_parameter("key", "path", of_path), "required": True, "description": "The routing key."},
            {**_parameter("idempotency_key", "path", of_path), "required": True},
            *([at] if kind.time_bucket else []),
            _parameter("Prefer", "header", _PREFER),
        ],
        "responses": {
            "200": {"description": "What the database that owns the key's slot says.", "content": _json("Outcome")},
            **_problems("400", "404", "429"),
            "503": {**_problem("503")[1], "description": "No database that may have the slot could be asked."},
            **_unless_open(settings),
        },
        **_security(settings),
    }


def _batch(settings: Gateway) -> Schema:
    return {
        "operationId": "write_batch",
        "summary": "Take writes as JSON lines; a result for each comes back, in order",
        "requestBody": {
            "required": True,
            "content": {"application/x-ndjson": {}},
        },  # lines: OpenAPI has no schema for them
        "responses": {
            "200": {
                "description": "Each line has its own outcome: see the schemas Line and Result.",
                "content": {"application/x-ndjson": {}},
            },
            **_problems("400", "415", "429", "503"),
            **_unless_open(settings),
        },
        **_security(settings),
    }


def _line(fleet: Fleet) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS}
    return {
        "type": "object",
        "description": "One line of a batch.",
        "properties": {
            "type": {"enum": list(fleet.message_types)},
            "body": {"type": "object"},
            "key": text,
            "operation": {"enum": list(OPERATIONS)},
            "idempotency_key": text,
            "timestamp": _TIME,
        },
        "required": ["type", "body"],
        "additionalProperties": False,
    }


def _component(name: str) -> str:
    """A type's name as OpenAPI lets components be called; no two become one."""
    return name.replace("_", "__").replace("/", "_.")


_AT = "The time of the write, as its body has it: this type is routed by time."
_PREFER: Schema = {"type": "string", "examples": ["wait=2"]}
_PLACE: Schema = {
    "Location": {"description": "Where to ask later what became of the write.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "How long the request would wait, at most.", "schema": {"type": "string"}},
}
_MEANS = {
    "Prefer": "`wait=SECONDS` waits until the write is settled (RFC 7240); a longer wait than the gateway allows is shortened.",
    "idempotency_key": "The idempotency key that the write was sent with.",
    "Idempotency-Key": "The write's own id: sent again with the same one, it takes effect once.",
    "key": "The routing key; by default the body's field that the type names.",
    "operation": "By default as the type says.",
    "timestamp": "When it happened; by default now.",
}


def _json(schema: str, media_type: str = "application/json") -> Schema:
    return {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _problems(*statuses: str) -> Schema:
    return dict(_problem(status) for status in statuses)


def _problem(status: str) -> tuple[str, Schema]:
    response: Schema = {"description": _WHY[status], "content": _json("Problem", "application/problem+json")}
    if status in ("429", "503"):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return status, response


_WHY = {
    "400": "Something in the request is at fault; `errors` names it.",
    "401": "No key or token, or one that isn't good.",
    "403": "This client may not write this type.",
    "404": "There is no such message type, or no write of it can have this key: 007 for a whole number, or a UUID in capitals.",
    "408": "The body didn't come in time.",
    "413": "The write is too large.",
    "415": "The body is of another kind.",
    "422": "The idempotency key was sent before with another operation, routing key or body.",
    "429": "Too fast: try again after Retry-After.",
    "503": "Pub/Sub hasn't confirmed the write: try again with the same Idempotency-Key.",
}


def _unless_open(settings: Gateway) -> Schema:
    return _problems("401", "403") if settings.auth.kind != "none" else {}


def _security(settings: Gateway) -> Schema:
    return {"security": [{"bearer": []}]} if settings.auth.kind != "none" else {}


def _security_schemes(settings: Gateway) -> Schema:
    if settings.auth.kind == "none":
        return {}
    kind: Schema = {"type": "http", "scheme": "bearer"}
    return {"securitySchemes": {"bearer": {**kind, "bearerFormat": "JWT"} if settings.auth.kind == "oidc" else kind}}


_STATES: Schema = {
    "outcome": {
        "type": "string",
        "enum": [str(state) for state in State],
        "description": "applied: its effect is committed. parked: it waits, in order, for a person. dead: it is a dead letter. "
        "not_seen: not handled yet, or so long ago that the database has forgotten it. unknown: no database could be asked.",
    },
    "reason": {"type": "string", "description": "Of a parked or dead write, where it is known; of an unknown one."},
}
_OUTCOME: Schema = {
    "type": "object",
    "properties": {
        **_STATES,
        "slot": {"type": "integer", "minimum": 0},
        "shard": {"type": "string", "description": "Whose slot it is."},
    },
    "required": ["outcome", "slot", "shard"],
}


def _accepted(settings: Gateway) -> Schema:
    return {**_ACCEPTED, "properties": {**_ACCEPTED["properties"], **(_STATES if settings.outcomes else {})}}


_ACCEPTED: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "Pub/Sub's message id."},
        "slot": {"type": "integer", "minimum": 0},
        "shard": {"type": ["string", "null"], "description": "Whose slot it was when this gateway was configured."},
    },
    "required": ["id", "slot", "shard"],
}
_PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("detail", "pointer", "parameter", "header")},
                "required": ["detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}
_RESULT: Schema = {
    "type": "object",
    "description": "One line of a batch's answer: as Accepted with status 202, or as Problem.",
    "properties": {
        "line": {"type": "integer", "minimum": 1},
        "status": {"type": "integer"},
        **_ACCEPTED["properties"],
        "detail": {"type": "string"},
        "errors": _PROBLEM["properties"]["errors"],
    },
    "required": ["line", "status"],
}

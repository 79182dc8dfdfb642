"""What a value of `shards.yaml` may be: names that Kubernetes and Pub/Sub take, durations, sets of slots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from shardctl.fleet import quantities
from shardctl.fleet.keyspace import SlotSet
from shardctl.redaction import redacted, redacted_value


def shown(value: object) -> str:
    """A value as an error repeats it, cut short, without the secrets of a URL."""
    text = repr(redacted_value(value)) if isinstance(value, str) else redacted(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(frozen=True, slots=True)
class Text:
    """Text that matches `pattern` as a whole; `rule` says so in words."""

    pattern: str
    rule: str
    max_length: int

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        compiled = re.compile(self.pattern, re.ASCII)

        def check(value: str) -> str:
            if len(value) > self.max_length:
                raise ValueError(f"{shown(value)} has {len(value)} characters, and {self.max_length} are allowed")
            if not compiled.fullmatch(value):
                raise ValueError(f"{shown(value)} isn't {self.rule}")
            return value

        return core_schema.no_info_after_validator_function(check, core_schema.str_schema(strict=True))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return self.json_schema()

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^({self.pattern})$",
            "maxLength": self.max_length,
            "description": f"{self.rule}.",
        }


_LABEL_RULE = (
    "a Kubernetes name: lower-case letters, digits and '-', beginning with a letter, ending with a letter or digit"
)
Label = Annotated[str, Text(r"[a-z]([-a-z0-9]*[a-z0-9])?", _LABEL_RULE, 63)]
# Two of them and `-g999999-t255` make a subscription's name, which must fit a label value: autoscalers select by it.
ShortName = Annotated[str, Text(r"[a-z]([-a-z0-9]*[a-z0-9])?", _LABEL_RULE, 24)]
ObjectName = Annotated[
    str,
    Text(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", "the name of a Kubernetes object", 253),
]
SecretKey = Annotated[
    str, Text(r"[-._a-zA-Z0-9]+", "a key of a Kubernetes Secret: letters, digits, '-', '_' and '.'", 253)
]
TOPIC_ID = Text(
    r"(?!goog)[A-Za-z][-A-Za-z0-9_.~+%]{2,}",
    "a Pub/Sub id: 3 to 250 letters, digits or - _ . ~ + %, beginning with a letter and not with 'goog'",
    250,
)
TopicId = Annotated[str, TOPIC_ID]
ProjectId = Annotated[
    str,
    Text(
        r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]",
        "a Google Cloud project id: 6 to 30 lower-case letters, digits and '-'",
        80,
    ),
]
ProjectNumber = Annotated[str, Text(r"[1-9][0-9]{3,19}", "a Google Cloud project's number", 20)]
Image = Annotated[
    str,
    Text(
        r"[a-z0-9][-a-zA-Z0-9._/:]*(:(?!latest$)[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})",
        "an image with a tag other than 'latest', or a digest",
        500,
    ),
]
Identifier = Annotated[
    str, Text(r"[A-Za-z_][A-Za-z0-9_]*", "a column name: letters, digits and '_', not beginning with a digit", 63)
]
TableName = Annotated[
    str, Text(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?", "a table name, `table` or `schema.table`", 127)
]
AttributeName = Annotated[
    str, Text(r"(?!goog)[^\s\x00-\x1f]{1,256}", "a Pub/Sub attribute name (no blanks, not beginning with 'goog')", 256)
]
SinkPath = Annotated[
    str,
    Text(
        r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*",
        "the path of a Python factory, such as package.module:factory",
        200,
    ),
]
TypeName = Annotated[
    str,
    Text(
        r"[A-Za-z0-9][-A-Za-z0-9_./]*",
        "a message type: letters, digits and - _ . /, beginning with a letter or digit",
        100,
    ),
]
# Config Connector copies every label without a '/' onto the Google Cloud resource, where only this much is allowed.
_RESERVED_LABELS = r"(?!(app|shard)$)(?!([a-z0-9.-]*\.)?(kubernetes|k8s)\.io/)"
LabelKey = Annotated[
    str,
    Text(
        _RESERVED_LABELS
        + r"([a-z]([-_a-z0-9]{0,61}[a-z0-9])?"
        + r"|(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
        + r"/[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)",
        "a label key of your own: up to 63 lower-case letters, digits, '-' and '_', or with a domain, example.com/Team "
        "(app, shard and kubernetes.io are taken)",
        317,
    ),
]
LabelValue = Annotated[
    str, Text(r"([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?", "a label value: letters, digits and - _ . inside", 63)
]
Port = Annotated[int, Field(ge=1, le=65_535)]
SecretId = Annotated[str, Text(r"[-A-Za-z0-9_]+", "a secret's id in Secret Manager: letters, digits, '-' and '_'", 255)]
# As the API server writes it, so that what is applied equals what is live.
Quantity = Annotated[
    str,
    Text(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?", "a Kubernetes quantity such as 500m or 512Mi", 20),
    AfterValidator(quantities.canonical),
]
Cron = Annotated[
    str,
    Text(
        r"[-0-9A-Za-z*,/]+( [-0-9A-Za-z*,/]+){4}",
        "a cron line of five fields: minute, hour, day of month, month, day of week, such as '30 4 * * 1-5'",
        100,
    ),
]
TimeZone = Annotated[
    str, Text(r"[A-Za-z][-+_A-Za-z0-9]*(/[-+_A-Za-z0-9]+)*", "a time zone's name, such as Europe/Berlin or Etc/UTC", 64)
]
Region = Annotated[str, Text(r"[a-z]+-[a-z]+[0-9]+", "a Google Cloud region, such as europe-west1", 40)]

Network = Annotated[
    str,
    Text(
        r"projects/[a-z0-9.:-]+/global/networks/[a-z]([-a-z0-9]*[a-z0-9])?",
        "a VPC network, projects/PROJECT/global/networks/NAME",
        200,
    ),
]

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("a duration is a whole number with a unit: 30s, 10m, 12h or 7d")
    return timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])


def written_duration(value: timedelta) -> str:
    """As `shards.yaml` may have it."""
    return f"{int(value.total_seconds())}s"


@dataclass(frozen=True, slots=True)
class Between:
    """A duration written `30s`, `10m`, `12h` or `7d`, within bounds written the same way."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        low, high = _read_duration(self.least), _read_duration(self.most)

        def check(value: object) -> timedelta:
            duration = _read_duration(value)
            if not low <= duration <= high:
                raise ValueError(f"{shown(value)} doesn't lie between {self.least} and {self.most}")
            return duration

        writes = core_schema.plain_serializer_function_ser_schema(written_duration)
        return core_schema.no_info_plain_validator_function(check, serialization=writes)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": r"^\d+(s|m|h|d)$",
            "description": f"A duration from {self.least} to {self.most}.",
        }


Duration = Annotated[timedelta, Between("0s", "3650d")]


def _read_slots(value: object) -> SlotSet:
    if isinstance(value, SlotSet):
        return value
    if isinstance(value, str | int) and not isinstance(value, bool):
        return SlotSet.parse(str(value))
    if value == []:
        return SlotSet()
    raise ValueError("slots are a number or ranges: 5, or 0-341, or 0-99,200-299")


def _write_slots(slots: SlotSet) -> str | list[str]:
    return str(slots) if slots.ranges else []


Slots = Annotated[
    SlotSet,
    BeforeValidator(_read_slots),
    PlainSerializer(_write_slots),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "array", "maxItems": 0},
                {"type": "string", "pattern": r"^\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*$"},
            ]
        }
    ),
]


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)

"""HTTP methods and paths → methods of google.pubsub.v1, by the `google.api.http` rules of its protos. Pure.

The rules are those that google-cloud-pubsub was generated from. Its message classes carry no services, so they are read where
its own REST transports have them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from google.pubsub_v1.services.publisher.transports.rest_base import _BasePublisherRestTransport
from google.pubsub_v1.services.schema_service.transports.rest_base import _BaseSchemaServiceRestTransport
from google.pubsub_v1.services.subscriber.transports.rest_base import _BaseSubscriberRestTransport

from shardctl.broker.unsupported import IAM

PUBLISHER, SUBSCRIBER = "google.pubsub.v1.Publisher", "google.pubsub.v1.Subscriber"
SCHEMAS = "google.pubsub.v1.SchemaService"
_TRANSPORTS: Mapping[str, type] = {
    PUBLISHER: _BasePublisherRestTransport,
    SUBSCRIBER: _BaseSubscriberRestTransport,
    SCHEMAS: _BaseSchemaServiceRestTransport,
}
_METHOD_PREFIX = "_Base"
_VARIABLE = re.compile(r"\{([\w.]+)(?:=([^{}]*))?\}")
_WILDCARDS = {"*": "[^/]+", "**": ".+"}


@dataclass(frozen=True, slots=True)
class Route:
    """One rule. `body` is `*`, the one field that the body holds, or empty where there is none."""

    service: str
    name: str
    body: str
    pattern: re.Pattern[str]
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """`values` are the fields of the request that the path holds, by their names with dots."""

    route: Route
    values: Mapping[str, str]


class Routes:
    """Paths come as they are sent, percent-encoded: an encoded `/` is no separator."""

    def __init__(self) -> None:
        self._by_verb: dict[str, list[Route]] = defaultdict(list)
        for verb, _, route in sorted(_rules(), key=lambda rule: ":" not in rule[1]):
            if all(route.pattern != other.pattern for other in self._by_verb[verb]):
                self._by_verb[verb].append(route)

    def match(self, verb: str, path: str) -> Match | None:
        """The rule for a request, of which there is one at most: paths with a `:verb` come first."""
        for route in self._by_verb.get(verb, ()):
            if parts := route.pattern.fullmatch(path):
                return Match(route, dict(zip(route.fields, map(unquote, parts.groups()), strict=True)))
        return None

    def __iter__(self) -> Iterator[Route]:
        return (route for routes in self._by_verb.values() for route in routes)


def _rules() -> Iterator[tuple[str, str, Route]]:
    """HTTP method, path template and route of each rule, additional bindings too. Streams have none."""
    for service, transport in _TRANSPORTS.items():
        for attribute in dir(transport):
            options: Any = getattr(getattr(transport, attribute), "_get_http_options", None)
            if attribute.startswith(_METHOD_PREFIX) and options is not None:
                name = attribute.removeprefix(_METHOD_PREFIX)
                for option in options():
                    owner = IAM if "Iam" in name else service
                    pattern, fields = _compiled(option["uri"])
                    yield (
                        option["method"].upper(),
                        option["uri"],
                        Route(owner, name, option.get("body", ""), pattern, fields),
                    )


def _compiled(template: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """`/v1/{topic=projects/*/topics/*}:publish` → its pattern, and `("topic",)`."""
    parts: list[str] = []
    fields: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        fields.append(variable[1])
        segments = (_WILDCARDS.get(segment, re.escape(segment)) for segment in (variable[2] or "*").split("/"))
        parts += (re.escape(template[end : variable.start()]), f"({'/'.join(segments)})")
        end = variable.end()
    return re.compile("".join(parts) + re.escape(template[end:])), tuple(fields)

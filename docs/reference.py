"""Writes docs/reference/ from the code: the command line, `shards.yaml`, metrics and alerts. `make docs` runs it; a test
compares, so that neither page nor code can be wrong alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click

from consumer.observability.metrics import Metrics
from shardctl.cli import app
from shardctl.fleet import yamlfile
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.scalars import Between, Text
from shardctl.fleet.spec import Fleet
from shardctl.render import alerts

HERE = Path(__file__).parent
OUT = HERE / "reference"
MADE = "<!-- Made from the code by `make docs`. -->\n"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, text in pages().items():
        (OUT / name).write_text(text)


def pages() -> dict[str, str]:
    """Each page's text, by its file's name."""
    return {
        "commands.md": f"{MADE}\n{_commands()}",
        "shards-yaml.md": f"{MADE}\n{_settings()}",
        "metrics.md": f"{MADE}\n{_metrics()}",
        "alerts.md": f"{MADE}\n{_alerts()}",
    }


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [headers, ["---" for _ in headers], *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )


# --- the command line -------------------------------------------------------------------------------------------------


def _commands() -> str:
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="shardctl")
    text = get_docs_for_click(obj=command, ctx=context, name="shardctl", title="The command line")
    return text.replace("\n\n\n", "\n\n").strip() + "\n"


# --- shards.yaml ------------------------------------------------------------------------------------------------------


def _settings() -> str:
    text = "# shards.yaml\n\nEvery setting, with its default. `shardctl schema` prints the same for editors.\n"
    for title, model in _models(Fleet, "the fleet"):
        text += f"\n## {title}\n\n"
        if model.__doc__ and not model.__doc__.startswith("!!!"):
            text += f"{' '.join(model.__doc__.split())}\n\n"
        text += table(("setting", "default", "is"), _fields(model))
    return text


def _models(model: type[BaseModel], title: str, seen: set[type] | None = None) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each model once, an outer one before those in it, under the setting that it is first met at."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield title, model
    for name, field in model.model_fields.items():
        for inner in _inner(field.annotation):
            prefix = "" if title == "the fleet" else title.strip("`") + "."
            yield from _models(inner, f"`{prefix}{name}`", seen)


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _inner(part)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        description = field.description or ""
        rule = " ".join(filter(None, (_kind(field.annotation, field.metadata), _bounds(field))))
        yield f"`{name}`", _default(field), f"{rule}. {description}".strip() if description else f"{rule}."


def _kind(annotation: Any, metadata: Iterable[Any]) -> str:
    for constraint in metadata:
        if isinstance(constraint, Text):
            return constraint.rule
        if isinstance(constraint, Between):
            return f"a duration from {constraint.least} to {constraint.most}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings of their own, below"
    return _compound(get_origin(annotation), get_args(annotation)) or _PLAIN.get(annotation, "any value")


def _compound(origin: Any, parts: tuple[Any, ...]) -> str:
    if origin is Annotated:
        return _kind(parts[0], parts[1:])
    if origin is Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part, ()) for part in parts if part is not type(None))
    if origin is tuple:
        return f"a list of: {_kind(parts[0], ())}"
    if origin is dict:
        return f"a map from {_kind(parts[0], ())} to {_kind(parts[1], ())}"
    return ""


_PLAIN: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    timedelta: "a duration",
    SlotSet: "slots: ranges such as `0-341` or `0-99,200-299`",
}


def _bounds(field: FieldInfo) -> str:
    names = ("ge", "gt", "le")
    bounds = {name: getattr(rule, name) for rule in field.metadata for name in names if hasattr(rule, name)}
    low = f"from {bounds['ge']:,}" if "ge" in bounds else f"over {bounds['gt']:,}" if "gt" in bounds else ""
    return " ".join(filter(None, (low, f"to {bounds['le']:,}" if "le" in bounds else "")))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "must be given"
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, timedelta):
        return f"`{_duration(value)}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _duration(value: timedelta) -> str:
    total = int(value.total_seconds())
    unit, size = next(
        (u, s)
        for u, s in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
        if total % s == 0 and (total >= s or s == 1)
    )
    return f"{total // size}{unit}"


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metrics() -> str:
    text = "# Metrics\n\nWhat a consumer serves on `/metrics`, port 8080. A histogram has `_bucket`, `_sum` and `_count`.\n\n"
    return text + table(("metric", "kind", "labels", "tells"), consumer_metrics())


def consumer_metrics() -> Iterator[tuple[str, str, str, str]]:
    registry = Metrics().registry
    for collector in dict.fromkeys(registry._collector_to_names):  # noqa: SLF001 - labels have no other place
        for family in collector.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
            yield f"`{name}`", family.type, labels, family.documentation


# --- alerts -----------------------------------------------------------------------------------------------------------


def _alerts() -> str:
    text = "# Alerts\n\nAs they are rendered with the default thresholds. [What each means, and what to do](../alerts.md).\n\n"
    text_of = (HERE.parent / "shards.yaml").read_text() + "\nmonitoring: managed-prometheus\n"
    fleet = fleet_from(yamlfile.parse(text_of, "shards.yaml"))
    rows = (
        (
            f"[`{alert.name}`](../alerts.md#{alert.name.lower()})",
            alert.severity,
            _duration(alert.lasts),
            f"`{alert.expr}`",
        )
        for alert in alerts.alerts(fleet)
    )
    return text + table(("alert", "severity", "lasts", "expression"), rows)


if __name__ == "__main__":
    main()

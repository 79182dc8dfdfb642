"""Faults of `shards.yaml`, each with its place and its fix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from shardctl.errors import UsageError
from shardctl.fleet.scalars import shown
from shardctl.fleet.suggestion import nearest, suggestion

if TYPE_CHECKING:  # consumers read no YAML
    from shardctl.fleet.yamlfile import YamlFile

MAX_FAULTS_SHOWN = 20
MAX_WRITTEN = 40  # characters of a scalar, as an error repeats it


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file: where in it, what, and how to fix it."""

    path: tuple[str | int, ...]
    fault: str
    fix: str = ""


class SpecError(UsageError):
    """`shards.yaml` can't be used. Nothing was done."""

    def __init__(self, file: YamlFile, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(_fault_lines(file, self.faults)))


def _fault_lines(file: YamlFile, faults: Sequence[Fault]) -> list[str]:
    lines = []
    for fault in faults[:MAX_FAULTS_SHOWN]:
        line = file.line_of(fault.path)
        where = f"{file.path}:{line}" if line else file.path
        lines.append(f"{where}: {path_text(fault.path)}: {fault.fault}" + (f" Fix: {fault.fix}" if fault.fix else ""))
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"{file.path}: … and {len(faults) - MAX_FAULTS_SHOWN} more.")
    return lines


def path_text(path: Sequence[str | int]) -> str:
    """`("shards", 2, "slots")` as people write it: `shards[2].slots`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "(the whole file)"


def explained(file: YamlFile, model: type[BaseModel], errors: Sequence[Any]) -> list[Fault]:
    """Pydantic's errors in terms of the file.

    A field whose name is misspelt isn't also reported as missing, nor a list as too short for what is wrong with its items.
    """
    misspelt = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            path = error["loc"]
            misspelt.add((*path[:-1], nearest(str(path[-1]), _known_fields(model, path))))
    return [
        explain(file, model, error)
        for error in errors
        if not (error["type"] == "missing" and error["loc"] in misspelt)
        and not (error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])
    ]


def explain(file: YamlFile, model: type[BaseModel], error: Any) -> Fault:
    """A fault that pydantic found when it read the file into `model`, in terms of the file."""
    path = _as_written(file, tuple(part for part in error["loc"] if part != "[key]"))
    given = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = _known_fields(model, path)
            fix = f"fields here: {', '.join(known)}." if known else "remove it."
            fault = Fault(path, f"there is no such field.{suggestion(str(path[-1]), known)}", fix)
        case "missing":
            fault = Fault(path, "is missing.", "add it; `shardctl schema` describes it.")
        case "string_type":
            fault = _not_text(file, path, given)
        case "value_error":
            fault = Fault(path, f"{error['ctx']['error']}.")
        case "literal_error":
            expected = error["ctx"]["expected"]
            close = suggestion(str(given), re.findall(r"'([^']+)'", expected))
            fault = Fault(path, f"{shown(given)} isn't one of {expected}.{close}")
        case "model_type" | "dict_type" | "model_attributes_type":
            fault = Fault(path, f"a mapping of fields is wanted, not {_yaml_kind(given)}.")
        case "tuple_type":
            fault = Fault(path, f"a list is wanted, not {_yaml_kind(given)}.", "begin each item with `- `.")
        case "too_short":
            fault = Fault(path, f"needs at least {error['ctx']['min_length']} of these, and has {len(given)}.")
        case _:
            message = error["msg"].replace("Input should be", "must be")
            message = message.replace("Tuple", "The list").replace("Dictionary", "The mapping")
            fault = Fault(path, f"{message[0].lower()}{message[1:]}, and is {shown(given)}.")
    return fault


def _as_written(file: YamlFile, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The path without what follows a value that the file gives in short, such as `topic: x` for `topic: {name: x}`."""
    data = file.data
    for depth, part in enumerate(path):
        if isinstance(data, str | bool | int | float):
            return path[:depth]
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
    return path


def _not_text(file: YamlFile, path: tuple[str | int, ...], given: object) -> Fault:
    written = file.written(path)
    if isinstance(given, bool | int | float) and written is not None:
        short = written if len(written) <= MAX_WRITTEN else f"{written[:MAX_WRITTEN]}…"
        what = f"YAML reads {short} as {_yaml_kind(given)}, and text is wanted."
        return Fault(path, what, f'write "{short}" in quotes.')
    return Fault(path, f"text is wanted, not {_yaml_kind(given)}.")


def _yaml_kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {str: "text", list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)


def _known_fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The fields of the model that holds the field at `path`."""
    in_dict = False
    for part in path[:-1]:
        if isinstance(part, int) or in_dict:  # a list's item, or a dict's: such as a message type's name
            in_dict = False
            continue
        field = model.model_fields.get(part)
        within = _model_within(field.annotation) if field else None
        if field is None or within is None:
            return []
        model, in_dict = within, getattr(field.annotation, "__origin__", None) is dict
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if model := _model_within(argument):
            return model
    return None

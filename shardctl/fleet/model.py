"""The base class of every model of `shards.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from shardctl.fleet.scalars import Text


class Model(BaseModel):
    """Strict and frozen; refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class OrJust:
    """Lets a model be written as one of its fields alone: `traffic: services` for `traffic: {form: services}`."""

    field: str
    choices: tuple[str, ...] | Text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        short = str | bool | int | float if isinstance(self.choices, Text) else str

        def read(value: object) -> object:
            return {self.field: value} if isinstance(value, short) else value

        return core_schema.no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        short = self.choices.json_schema() if isinstance(self.choices, Text) else {"enum": list(self.choices)}
        return {"anyOf": [short, handler(schema)]}


class Inherited:
    """Lets a part of the file omit a setting, or leave it empty, and take it from the whole that it belongs to.

    Such a field's default is INHERITED, which no validated model holds.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.nullable_schema(handler(source))


INHERITED: Any = None

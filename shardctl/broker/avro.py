"""Avro: what a definition must be, and which messages fit it. Pure.

fastavro reads definitions. Messages are only compared with them, here, since fastavro's readers recurse in C: a definition that
contains itself would end the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from shardctl.broker.errors import InvalidArgumentError, UnimplementedError

_FASTAVRO_MISSING = "This broker reads Avro with fastavro, which isn't installed. Run: pip install 'shardctl[local]'"
MAX_DEPTH = 200  # of values in each other
MAX_EMPTY_VALUES = 100_000  # that take no bytes, so that a short message can't stand for a billion of them
_INTEGER_BITS = {"int": 31, "long": 63}
_MISSING = object()  # which fits no schema
_FIXED_BYTES = {"null": 0, "boolean": 1, "float": 4, "double": 8}

Schema = Any
"""As fastavro parses it: a name, a list for a union, or a dict."""


class _MisfitError(Exception):
    """The message isn't of this schema."""


class Avro:
    """A definition. Raises InvalidArgumentError for a text that is none, UnimplementedError without fastavro."""

    def __init__(self, text: str) -> None:
        try:
            import fastavro
        except ImportError as error:
            raise UnimplementedError(_FASTAVRO_MISSING) from error
        self._named: dict[str, Schema] = {}
        try:
            tree = orjson.loads(text)
            _check_records(tree)
            self._schema = fastavro.parse_schema(tree, named_schemas=self._named)
        # The parser reports most of what it can't read by an error of its own, and the rest by whatever it stumbles over.
        except Exception as error:
            raise InvalidArgumentError(f"Invalid Avro definition: {type(error).__name__}: {error}") from error

    def fits(self, data: bytes, *, json: bool) -> bool:
        """Whether a message in Avro's JSON or binary form is of this schema. As in Pub/Sub, it may have more than that."""
        try:
            if json:
                self._check(self._schema, orjson.loads(data), MAX_DEPTH)
            else:
                _Binary(self, data).skip(self._schema, MAX_DEPTH)
        except (_MisfitError, ValueError):  # JSON that is none is a ValueError
            return False
        return True

    def resolved(self, schema: Schema) -> tuple[str, Schema]:
        """The kind of a schema, such as `record`, and its definition."""
        schema = self._named.get(schema, schema) if isinstance(schema, str) else schema
        if isinstance(schema, list):
            return "union", schema
        return (schema, schema) if isinstance(schema, str) else (schema["type"], schema)

    def _check(self, schema: Schema, value: Any, depth: int) -> None:
        """Raises _MisfitError where a value of JSON isn't one of the schema."""
        if depth == 0:
            raise _MisfitError
        for inner_schema, inner_value in self._inner(*self.resolved(schema), value):
            self._check(inner_schema, inner_value, depth - 1)

    def _inner(self, kind: str, definition: Schema, value: Any) -> Iterable[tuple[Schema, Any]]:
        """What a value holds, with the schemas it must fit."""
        match kind, value:
            case "record", dict():
                return [(field["type"], value.get(field["name"], _MISSING)) for field in definition["fields"]]
            case "array", list():
                return [(definition["items"], item) for item in value]
            case "map", dict():
                return [(definition["values"], item) for item in value.values()]
            case "union", dict() | None:  # null or `{"branch": value}`
                name, content = next(iter(value.items()), ("", None)) if value is not None else ("null", None)
                branches = [branch for branch in definition if self._branch_name(branch) == name]
                if branches and (value is None or len(value) == 1):
                    return [(branches[0], content)]
            case _ if _is_plain(kind, definition, value):
                return ()
        raise _MisfitError

    def _branch_name(self, branch: Schema) -> str:
        kind, definition = self.resolved(branch)
        return str(definition["name"]) if kind in {"record", "enum", "fixed"} else kind


class _Binary:
    """A message in binary form, from its first byte on."""

    def __init__(self, avro: Avro, data: bytes) -> None:
        self._avro, self._data, self._place = avro, data, 0
        self._values_left = len(data) + MAX_EMPTY_VALUES

    def skip(self, schema: Schema, depth: int) -> None:
        """One value of the schema. Raises _MisfitError where none is next."""
        kind, definition = self._avro.resolved(schema)
        self._values_left -= 1
        if depth == 0 or self._values_left < 0:
            raise _MisfitError
        match kind:
            case "record":
                for field in definition["fields"]:
                    self.skip(field["type"], depth - 1)
            case "array" | "map":
                self._skip_blocks(kind, definition, depth)
            case "union":
                self.skip(definition[self._index(len(definition))], depth - 1)
            case _:
                self._skip_plain(kind, definition)

    def _skip_plain(self, kind: str, definition: Schema) -> None:
        match kind:
            case "enum":
                self._index(len(definition["symbols"]))
            case "int" | "long":
                self._long(_INTEGER_BITS[kind])
            case "string":
                self._take(self._long()).decode()
            case "bytes":
                self._take(self._long())
            case "fixed":
                self._take(definition["size"])
            case "boolean" if self._take(1) not in {b"\0", b"\1"}:
                raise _MisfitError
            case "null" | "float" | "double":
                self._take(_FIXED_BYTES[kind])

    def _skip_blocks(self, kind: str, definition: Schema, depth: int) -> None:
        while count := self._long():
            if count < 0:  # then the size of the block in bytes follows
                self._long()
            for _ in range(abs(count)):
                if kind == "map":
                    self.skip("string", depth - 1)
                self.skip(definition["values" if kind == "map" else "items"], depth - 1)

    def _index(self, length: int) -> int:
        index = self._long()
        if not 0 <= index < length:
            raise _MisfitError
        return index

    def _long(self, bits: int = 63) -> int:
        """A zigzag number of up to ten bytes."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                number = (number >> 1) ^ -(number & 1)
                if not -(1 << bits) <= number < 1 << bits:
                    raise _MisfitError
                return number
        raise _MisfitError

    def _take(self, size: int) -> bytes:
        taken = self._data[self._place : self._place + size] if size >= 0 else b""
        if len(taken) != size:
            raise _MisfitError
        self._place += size
        return taken


def _is_plain(kind: str, definition: Schema, value: Any) -> bool:
    """Whether a value of JSON is one of a schema that holds no others."""
    if kind == "null" or value is None or isinstance(value, bool):  # which Python takes for a number, too
        return {"null": value is None, "boolean": isinstance(value, bool)}.get(kind, False)
    match kind, value:
        case (("int" | "long"), int()):
            return -(1 << _INTEGER_BITS[kind]) <= value < 1 << _INTEGER_BITS[kind]
        case "enum", str():
            return value in definition["symbols"]
        case (("bytes" | "fixed"), str()):  # a character stands for a byte
            fits = kind == "bytes" or len(value) == definition["size"]
            return fits and all(character <= "\xff" for character in value)
    return (kind == "string" and isinstance(value, str)) or (kind in _FIXED_BYTES and isinstance(value, int | float))


def _check_records(tree: Any) -> None:
    """Raises TypeError for a record without fields, which fastavro takes."""
    if isinstance(tree, dict):
        if tree.get("type") == "record" and not isinstance(tree.get("fields"), list):
            raise TypeError("a record needs a list of fields")
        for value in tree.values():
            _check_records(value)
    elif isinstance(tree, list):
        for value in tree:
            _check_records(value)

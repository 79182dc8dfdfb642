"""The text of `message_types` for tables that exist, with comments where something needs a decision. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from shardctl.drafting.catalog import ExistingColumn, ExistingTable
from shardctl.drafting.columntypes import Choice, choice_of
from shardctl.errors import ShardctlError
from shardctl.fleet.scalars import Identifier, TableName, TypeName
from shardctl.fleet.settings.columns import length_of
from shardctl.fleet.settings.messagetypes import MAX_KEY_CHARACTERS
from shardctl.printable import printable_line

VERSIONS = ("version", "revision", "row_version", "lock_version", "version_number")
SLOT_COLUMN, OTHER_SLOT_COLUMN = "slot", "shardctl_slot"
_MOST_NOTE_CHARACTERS = 100
_NOT_PLAIN = frozenset(
    ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
)  # what YAML reads as another value
_NAME, _TABLE, _TYPE = TypeAdapter(Identifier), TypeAdapter(TableName), TypeAdapter(TypeName)


class DraftError(ShardctlError):
    """No table can be a message type's."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The lines under `message_types:`, how many types there are, and why the other tables are left out."""

    text: str
    types: int
    left_out: tuple[str, ...]


def draft_of(tables: Sequence[ExistingTable]) -> Draft:
    """A message type for each table that can have one. Raises DraftError where none can."""
    lines: list[str] = []
    left_out: list[str] = []
    names: set[str] = set()
    for table in tables:
        name = table.name.rpartition(".")[2]
        name = table.name.replace(".", "_") if name in names else name
        if fault := _fault_of(table, name):
            left_out.append(f"{printable_line(table.name)}: {fault}")
            continue
        names.add(name)
        lines += _type_of(table, name)
    if not names:
        raise DraftError(f"no table can be written to by a fleet: {'; '.join(left_out)}.")
    lines += [f"  # left out: {_short(reason)}" for reason in left_out]
    return Draft("".join(f"{line}\n" for line in lines), len(names), tuple(left_out))


def _fault_of(table: ExistingTable, name: str) -> str:
    """Why no type can be drafted; empty where one can."""
    if not (_is(_TABLE, table.name) and _is(_TYPE, name)):
        return "names in this file hold letters, digits and '_'"
    if not table.key:
        return "it has neither a primary key nor a unique one without NULL"
    if engine := table.engine_without_transactions:
        return f"its engine {engine} has no transactions; ALTER TABLE ... ENGINE=InnoDB changes that"
    by_name = {column.name: column for column in table.columns}
    for name_in_key in table.key:
        fault = _fault_of_key(by_name[name_in_key])
        if fault:
            return f"its key column {printable_line(name_in_key)}: {fault}"
    for column in table.columns:
        choice = _choice(column, table.key)
        if choice.type is None and not (column.nullable or column.has_default or column.numbered or column.generated):
            return f"column {printable_line(column.name)} is NOT NULL, and {choice.note}: give it a default, or make it nullable"
    return ""


def _fault_of_key(column: ExistingColumn) -> str:
    if column.generated:
        return "the database computes it"
    choice = _choice(column, (column.name,))
    if choice.type is not None and (length_of(choice.type) or 0) > MAX_KEY_CHARACTERS:
        return f"databases index {MAX_KEY_CHARACTERS} characters"
    return "" if choice.type else choice.note


def _choice(column: ExistingColumn, key: Sequence[str]) -> Choice:
    if not _is(_NAME, column.name):
        return Choice(None, "names in this file hold letters, digits and '_'")
    return choice_of(column, in_key=column.name in key)


def _type_of(table: ExistingTable, name: str) -> Iterator[str]:
    slot = _slot_column(table)
    yield f"  {_plain(name)}:"
    yield f"    table: {_plain(table.name)}"
    key = ", ".join(map(_plain, table.key))
    unique = "" if table.key_is_primary else _comment("unique, no primary key")
    yield f"    key: {key if len(table.key) == 1 else f'[{key}]'}{unique}"
    for column in table.columns:
        if column.name in table.key and column.numbered:
            yield _comment_line(
                f"the database numbers {column.name}; a fleet's keys come with the writes: see `shardctl provision`"
            )
    for column in table.columns:
        if column.name in table.folding and (_choice(column, table.key).type or "").startswith(("text", "varchar")):
            yield _comment_line(
                f"{column.name}: a and A are two slots, and one key here: compare bytes, as utf8mb4_bin"
            )
    for columns, parent in table.parents:
        yield _comment_line(
            f"{', '.join(columns)} refers to {parent}: both rows must be in one slot, so give both types one routing_key"
        )
    if version := _version_column(table):
        yield f"    version_column: {_plain(version)}" + _comment("a guess, by its name: each write must then carry it")
    if slot != SLOT_COLUMN:
        yield f"    slot_column: {slot}"
        yield _comment_line(
            "slot is the table's own; if it holds a fleet's slots, take the line above and that column out"
        )
    yield "    columns:"
    yield from _columns(table, slot)


def _columns(table: ExistingTable, slot: str) -> Iterator[str]:
    for column in table.columns:
        if column.name == slot:
            continue
        choice = _choice(column, table.key)
        name = printable_line(column.name)
        if column.generated:
            yield _comment_line(f"{name}: left out, the database computes it", 6)
        elif column.numbered and column.name not in table.key:
            yield _comment_line(f"{name}: left out, the database numbers it", 6)
        elif choice.type is None:
            yield _comment_line(f"{name}: left out, {choice.note}", 6)
        else:
            quoted = f'"{choice.type}"' if "," in choice.type else choice.type
            yield f"      {_plain(column.name)}: {quoted}{_comment(choice.note)}"


def _slot_column(table: ExistingTable) -> str:
    """A column called `slot` may mean anything, and a fleet would overwrite it."""
    return OTHER_SLOT_COLUMN if any(column.name.lower() == SLOT_COLUMN for column in table.columns) else SLOT_COLUMN


def _version_column(table: ExistingTable) -> str | None:
    for column in table.columns:
        is_whole = choice_of(column, in_key=False).type in {"integer", "bigint"}
        if column.name.lower() in VERSIONS and is_whole and column.name not in table.key and not column.generated:
            return column.name
    return None


def _plain(name: str) -> str:
    """A name as YAML reads it back as text."""
    return f'"{name}"' if name.lower() in _NOT_PLAIN else name


def _comment(note: str) -> str:
    return f"  # {_short(note)}" if note else ""


def _comment_line(note: str, indent: int = 4) -> str:
    return f"{' ' * indent}# {_short(note)}"


def _short(note: str) -> str:
    """One line, whatever names and labels of the database are in it."""
    line = printable_line(note)
    return line if len(line) <= _MOST_NOTE_CHARACTERS else f"{line[: _MOST_NOTE_CHARACTERS - 1]}…"


def _is(adapter: TypeAdapter[str], name: str) -> bool:
    try:
        adapter.validate_python(name)
    except ValidationError:
        return False
    return True

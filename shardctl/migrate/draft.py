"""A revision from what `shards.yaml` maps and the shards lack.

What can't be drafted without a risk is named, with the step by hand.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.autogenerate import render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Dialect, Engine, MetaData, inspect
from sqlalchemy import types as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine.default import DefaultDialect

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet, Shard
from shardctl.migrate.history import History
from shardctl.rebalance.rows.values import kind_of, meeting
from shardctl.shard import schema
from shardctl.shard.database import snapshot
from shardctl.shard.mapped import Lack

_ID_BYTES = 6
_LONGEST_SLUG = 40
_DEFAULT_BYTES = 4
_INTEGER_BYTES = ((sa.BigInteger, 8), (sa.SmallInteger, 2), (mysql.MEDIUMINT, 3), (mysql.TINYINT, 1))


@dataclass(frozen=True, slots=True)
class Draft:
    path: Path
    id: str
    text: str


def draft(fleet: Fleet, history: History, lacks: Iterable[Lack], title: str = "") -> Draft | None:
    """The next revision of the line; None where nothing that is lacking can be drafted."""
    wanted = sorted({lack for lack in lacks if _is_safe(lack, fleet)})
    if not wanted:
        return None
    mapped = MetaData()
    for kind in fleet.message_types.values():
        if kind.table:
            schema.table_of(kind, mapped)
    operations = [operation for lack in wanted for operation in _operations(lack, mapped)]
    title = title or "Add " + ", ".join(lack.table + (f".{lack.column}" if lack.column else "") for lack in wanted)
    number, name = len(history.revisions) + 1, secrets.token_hex(_ID_BYTES)
    slug = re.sub(r"[^a-z0-9]+", "_", f"{title.lower()}_")[:_LONGEST_SLUG].rpartition("_")[0].strip("_") or "revision"
    path = history.folder / f"{number:04}_{slug}.py"
    if any(revision.path.name == path.name for revision in history.revisions):
        path = path.with_stem(f"{path.stem}_{name}")
    return Draft(path, name, _text(name, history.head, title, operations))


def _is_safe(lack: Lack, fleet: Fleet) -> bool:
    """A key and a slot need values in the rows that are there."""
    if not lack.column:
        return True
    return not lack.is_slot and all(lack.column not in kind.key for kind in _kinds_of(fleet, lack.table))


def _kinds_of(fleet: Fleet, table: str) -> list[MessageType]:
    return [kind for kind in fleet.message_types.values() if kind.table == table]


def _operations(lack: Lack, mapped: MetaData) -> Iterator[ops.MigrateOperation]:
    table = mapped.tables[lack.table]
    if lack.column:
        column = Column(lack.column, table.columns[lack.column].type, nullable=True)
        yield ops.AddColumnOp(table.name, column, schema=table.schema)
        return
    yield ops.CreateTableOp.from_table(table)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield ops.CreateIndexOp.from_index(index)


def _text(name: str, before: str | None, title: str, operations: list[ops.MigrateOperation]) -> str:
    context = MigrationContext.configure(dialect=DefaultDialect())
    body = render_python_code(ops.UpgradeOps(operations), migration_context=context)
    for ours, theirs in _SHORTER:
        body = re.sub(ours, theirs, body)
    dialects = sorted(set(re.findall(r"\b(mysql|postgresql)\.", body)))
    imported = f"from sqlalchemy.dialects import {', '.join(dialects)}\n" if dialects else ""
    doc = title.replace("\\", "").replace('"', "'").rstrip(".")
    return (
        f'"""{doc}."""\n\nimport sqlalchemy as sa\nfrom alembic import op\n{imported}\n'
        f"revision = {name!r}\ndown_revision = {before!r}\n\n\n"
        "def upgrade() -> None:\n" + "\n".join(_indented(body)) + "\n"
    )


# Of what Alembic renders: types that MySQL and MariaDB share, and a default of JSONB that would need an import.
_SHORTER = (
    (
        r"\.with_variant\((mysql\..+?), 'mariadb'\)\.with_variant\(\1, 'mysql'\)",
        r".with_variant(\1, 'mysql', 'mariadb')",
    ),
    (r"astext_type=Text\(\)", ""),
)


def _indented(body: str) -> Iterator[str]:
    """What stands in the parentheses of a call of several lines, one step further in."""
    inside = False
    for line in body.rstrip().splitlines():
        if line.lstrip().startswith("# ###"):
            continue
        inside = inside and line != "    )"
        yield f"    {line}" if inside else line
        inside = inside or line.endswith(",")


def by_hand(fleet: Fleet, engines: Mapping[str, Engine], lacks: Iterable[Lack]) -> list[str]:
    """Each difference that no draft can close, with the way to close it; those of several shards once."""
    steps: dict[str, list[str]] = {}
    for lack in sorted(set(lacks)):
        if not _is_safe(lack, fleet):
            steps[_of_lack(lack)] = []
    for shard in fleet.shards:
        for text in _of_shard(fleet, shard, engines[shard.name]):
            steps.setdefault(text, []).append(shard.name)
    return [text + (f" (shards {', '.join(shards)})" if shards else "") for text, shards in steps.items()]


def _of_lack(lack: Lack) -> str:
    if lack.is_slot:
        return f"{lack}."
    return (
        f"table {lack.table}: {lack.column} is part of the key, and rows that are there have no value for it. Add the column, "
        "fill it, and make the key yourself, in revisions of your own."
    )


def _of_shard(fleet: Fleet, shard: Shard, engine: Engine) -> Iterator[str]:
    with snapshot(engine) as connection:
        inspector = inspect(connection)
        for table in dict.fromkeys(
            kind.table for name, kind in fleet.message_types.items() if kind.table and shard.takes(name)
        ):
            space, _, bare = table.rpartition(".")
            if not inspector.has_table(bare, schema=space or None):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of types that SQLAlchemy doesn't know
                present = {column["name"]: column for column in inspector.get_columns(bare, schema=space or None)}
            wanted = schema.table_of(_kinds_of(fleet, table)[0], MetaData())
            for column in wanted.columns:
                if column.name in present and (
                    fault := _unlike(connection.dialect, column, present[column.name]["type"])
                ):
                    yield f"table {table}, column {column.name}: {fault}"
            unmapped = {name: present[name] for name in present if name not in wanted.columns}
            yield from _of_unmapped(table, unmapped)


def _unlike(dialect: Dialect, column: Column[Any], there: sa.TypeEngine[Any]) -> str | None:
    wanted, product = column.type.dialect_impl(dialect), dialect.name
    if product == "sqlite":
        return None  # its columns hold any value
    if meeting(kind_of(product, wanted), kind_of(product, there)) is None:
        fault = f"is {there.compile(dialect)}, and shards.yaml's {wanted.compile(dialect)} is something else"
    elif _bytes(there) < _bytes(wanted):
        fault = f"is {there.compile(dialect)}, which can't hold every {wanted.compile(dialect)} of shards.yaml"
    else:
        return None
    return (
        f"{fault}. A type isn't changed in place: writers would wait while the table is written again. Add a column of "
        "the new type (expand), let consumers write it, fill it, and drop the old one (contract)."
    )


def _bytes(column_type: sa.TypeEngine[Any]) -> int:
    """Of an integer; 0 of others."""
    if not isinstance(column_type, sa.Integer):
        return 0
    return next((size for base, size in _INTEGER_BYTES if isinstance(column_type, base)), _DEFAULT_BYTES)


def _of_unmapped(table: str, columns: Mapping[str, Any]) -> Iterator[str]:
    given = {name for name, column in columns.items() if any(map(column.get, ("computed", "identity")))}
    given |= {name for name, column in columns.items() if column.get("autoincrement") is True}
    for name in columns.keys() - given:
        if not columns[name]["nullable"] and columns[name].get("default") is None:
            yield (
                f"table {table}, column {name}: it is NOT NULL without a default, and shards.yaml doesn't map it, so no "
                "new row can be written. Give it a default, let it be NULL, or map it."
            )
    if names := sorted(columns.keys() - given):
        yield (
            f"table {table}: shards.yaml doesn't map {', '.join(names)}. Leave what others use. What nothing uses any more, drop "
            f"in a revision of your own: `op.drop_column({table!r}, {names[0]!r})`."
        )

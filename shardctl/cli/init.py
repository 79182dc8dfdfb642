"""`shardctl init`: a shards.yaml to start from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from shardctl.fleet.scaffold import Names

DEFAULT_SHARDS = 3
DEFAULT_KEY, DEFAULT_TABLE = "user_id", "users"

Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        metavar="N",
        min=1,
        max=256,
        help="How many shards; by default 3, with --from-database 1.",
        show_default=False,
    ),
]
FromDatabase = Annotated[
    str | None,
    typer.Option(
        "--from-database",
        metavar="URL",
        help="Draft the message types from the tables of a database, which is only read: its URL, or the name of an "
        "environment variable that holds it.",
    ),
]
Tables = Annotated[
    str | None, typer.Option("--tables", metavar="A,B", help="With --from-database: these tables alone.")
]
Schema = Annotated[
    str | None, typer.Option("--schema", metavar="NAME", help="With --from-database: the tables' schema.")
]


def init(
    shards: Shards = None,
    file: FileOption = DEFAULT_FILE,
    modulo: Annotated[
        int | None,
        typer.Option("--from-modulo", metavar="N", min=2, max=256, help="Map databases that were chosen by KEY % N."),
    ] = None,
    key: Annotated[
        str, typer.Option("--key", metavar="COLUMN", help="With --from-modulo: the column of that key.")
    ] = DEFAULT_KEY,
    table: Annotated[
        str, typer.Option("--table", metavar="TABLE", help="With --from-modulo: a table it is in; add the others.")
    ] = DEFAULT_TABLE,
    from_database: FromDatabase = None,
    tables: Tables = None,
    schema: Schema = None,
    fleet: Annotated[
        str | None, typer.Option("--fleet", metavar="NAME", help="The fleet's name; its Secrets begin with it.")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", metavar="ID", help="The Google Cloud project.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="By default called like the fleet.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="IMAGE", help="The consumers' image.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> int:
    """Write a commented shards.yaml to start from."""
    if modulo is None and (key, table) != (DEFAULT_KEY, DEFAULT_TABLE):
        raise UsageError("--key and --table belong to --from-modulo.")
    if modulo is not None and shards not in {None, modulo}:
        raise UsageError(f"--from-modulo {modulo} makes {modulo} shards, one for each database: leave out --shards.")
    names = _names(fleet, project, namespace, image)
    missing = [name for name, value in (("project", project), ("image", image)) if value is None]
    if from_database is not None:
        if modulo is not None:
            raise UsageError("--from-modulo and --from-database exclude each other.")
        if file.is_file() and not force:  # before the database is asked
            raise _there(file)
        start = _from_database(from_database, tables, schema, shards or 1, names)  # where the rows are
    elif tables or schema:
        raise UsageError("--tables and --schema belong to --from-database.")
    else:
        start = _from_modulo(modulo, key, table, names) if modulo else _plain(shards or DEFAULT_SHARDS, names)
    _write(file, start.content, force=force)
    fields = [*missing, *start.fields]
    edit = f"edit {_listed(fields)}, then " if fields else ""
    say(f"{file}: {start.what}. Next: {edit}`shardctl validate`.")
    return EXIT_DONE


class _Start(NamedTuple):
    """The file's content, what it has, and what a person must edit besides project and image."""

    content: str
    what: str
    fields: tuple[str, ...] = ()


def _plain(shards: int, names: Names) -> _Start:
    from shardctl.fleet import scaffold

    return _Start(scaffold.text(shards, names), _counted(shards))


def _from_modulo(modulo: int, key: str, table: str, names: Names) -> _Start:
    from shardctl.fleet import scaffold

    _check((("--key", key, "Identifier"), ("--table", table, "TableName")))
    return _Start(scaffold.text_of_modulo(modulo, key, table, names), _counted(modulo), ("tables",))


def _from_database(url: str, tables: str | None, schema: str | None, shards: int, names: Names) -> _Start:
    from shardctl.drafting.catalog import existing_tables
    from shardctl.drafting.draft import draft_of
    from shardctl.fleet import scaffold
    from shardctl.shard import database, databaseurl

    chosen = [name for part in (tables or "").split(",") if (name := part.strip())]
    if tables is not None and not chosen:
        raise UsageError("--tables names no table. Name some, or leave it out to draft all of them.")
    if "://" not in url:
        if url not in os.environ:
            raise UsageError("--from-database: neither a database URL nor an environment variable that is set.")
        url = os.environ[url]
    try:
        databaseurl.parse(url)
    except databaseurl.DatabaseUrlError as error:
        raise type(error)(f"--from-database: {error}") from error
    engine = database.connect(url)
    try:
        draft = draft_of(existing_tables(engine, schema, chosen))
    finally:
        engine.dispose()
    for reason in draft.left_out:
        say(f"left out: {reason}")
    what = f"{_counted(shards)}, {draft.types} of {draft.types + len(draft.left_out)} tables"
    return _Start(scaffold.text_of_tables(shards, draft.text, names), what, ("what the comments ask for",))


def _counted(shards: int) -> str:
    return f"{shards} shard{'s' if shards > 1 else ''}"


def _write(file: Path, content: str, *, force: bool) -> None:
    from shardctl import atomicfile

    try:
        atomicfile.write(file, content.encode(), new=not force)
    except atomicfile.FileThereError as error:
        raise _there(file) from error


def _there(file: Path) -> ShardctlError:
    return ShardctlError(f"{file} exists already. --force overwrites it; -f names another.")


def _names(fleet: str | None, project: str | None, namespace: str | None, image: str | None) -> Names:
    from shardctl.fleet.scaffold import Names

    given = {"fleet": fleet, "project": project, "namespace": namespace or fleet, "image": image}
    kinds = {"fleet": "ShortName", "project": "ProjectId", "namespace": "Label", "image": "Image"}
    chosen = {name: value for name, value in given.items() if value is not None}
    _check((f"--{name}", value, kinds[name]) for name, value in chosen.items())
    return Names(**chosen)


def _check(options: Iterable[tuple[str, str, str]]) -> None:
    """Raise UsageError for a value that isn't what its option's kind of `scalars` takes."""
    from pydantic import TypeAdapter, ValidationError

    from shardctl.fleet import scalars

    for option, value, kind in options:
        try:
            TypeAdapter(getattr(scalars, kind)).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]

"""`shardctl init`: a shards.yaml to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError


def init(
    shards: Annotated[int, typer.Option("--shards", metavar="N", min=1, max=256, help="How many shards.")] = 3,
    file: FileOption = DEFAULT_FILE,
    modulo: Annotated[
        int | None,
        typer.Option("--from-modulo", metavar="N", min=2, max=256, help="Map databases that were chosen by KEY % N."),
    ] = None,
    key: Annotated[
        str, typer.Option("--key", metavar="COLUMN", help="With --from-modulo: the column of that key.")
    ] = "user_id",
    table: Annotated[
        str, typer.Option("--table", metavar="TABLE", help="With --from-modulo: a table it is in; add the others.")
    ] = "users",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> int:
    """Write a commented shards.yaml to start from."""
    from shardctl import atomicfile
    from shardctl.fleet import scaffold

    if modulo is None:
        content = scaffold.text(shards)
    else:
        shards, content = modulo, _of_modulo(modulo, key, table)
    try:
        atomicfile.write(file, content.encode(), new=not force)
    except atomicfile.FileThereError as error:
        raise ShardctlError(f"{file} exists already. --force overwrites it; -f names another.") from error
    fields = "project, image and tables" if modulo else "project and image"
    say(f"{file}: {shards} shard{'s' if shards > 1 else ''}. Next: edit {fields}, then `shardctl validate`.")
    say(
        "On a cluster: `kubectl create namespace orders`, or `create_namespace: true` in the file; then `shardctl apply`."
    )
    return EXIT_DONE


def _of_modulo(modulo: int, key: str, table: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from shardctl.fleet import scaffold
    from shardctl.fleet.scalars import Identifier, TableName

    for option, value, kind in (("--key", key, Identifier), ("--table", table, TableName)):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error
    return scaffold.text_of_modulo(modulo, key, table)

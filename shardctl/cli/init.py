"""`shardctl init`: a shards.yaml to start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.scaffold import Names


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
    from shardctl import atomicfile
    from shardctl.fleet import scaffold

    names = _names(fleet, project, namespace, image)
    if modulo is None:
        content = scaffold.text(shards, names)
    else:
        _check((("--key", key, "Identifier"), ("--table", table, "TableName")))
        shards, content = modulo, scaffold.text_of_modulo(modulo, key, table, names)
    try:
        atomicfile.write(file, content.encode(), new=not force)
    except atomicfile.FileThereError as error:
        raise ShardctlError(f"{file} exists already. --force overwrites it; -f names another.") from error
    missing = [name for name, value in (("project", project), ("image", image)) if value is None]
    fields = [*missing, "tables"] if modulo else missing
    edit = f"edit {_listed(fields)}, then " if fields else ""
    say(f"{file}: {shards} shard{'s' if shards > 1 else ''}. Next: {edit}`shardctl validate`.")
    return EXIT_DONE


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

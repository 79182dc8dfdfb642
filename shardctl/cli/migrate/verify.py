"""`shardctl migrate verify`: all shards have one schema."""

from __future__ import annotations

from shardctl.cli.migrate.shards import Schemas, known, pending, schemas_of
from shardctl.cli.provision import DatabaseOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_REFUSED


def verify(file: FileOption = DEFAULT_FILE, database: DatabaseOption = None, as_json: JsonOption = False) -> int:
    """Check that all shards have the same revisions and the same tables, with all that shards.yaml maps."""
    from shardctl.migrate import sameness

    with schemas_of(file, database) as schemas:
        standings = known(schemas)
        faults = [
            f"revision {name} is pending on {', '.join(shards)}: `shardctl migrate apply`"
            for name, shards in pending(schemas, standings).items()
        ]
        faults += [f"shard {name}: {lack}" for name, standing in standings.items() for lack in standing.lacks]
        with waiting("the tables of all shards"):
            faults += map(str, sameness.compare(schemas.fleet, schemas.engines, _others(schemas)))
    if as_json:
        print_json({"same": not faults, "revision": schemas.history.head, "faults": faults})
    elif faults:
        out("\n".join(faults))
    if faults:
        say(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}: the shards don't have one schema.")
        return EXIT_REFUSED
    revision = f"revision {schemas.history.head} and " if schemas.history.head else ""
    say(f"Verified: all {len(schemas.engines)} shards have {revision}one schema.")
    return EXIT_DONE


def _others(schemas: Schemas) -> list[str]:
    """The tables that revisions name and no message type does."""
    from shardctl.migrate.preview import preview

    dialects = {engine.dialect.name: engine.dialect for engine in schemas.engines.values()}
    tables = {
        table
        for revision in schemas.history.revisions
        for dialect in dialects.values()
        for table in preview(revision, dialect).tables
    }
    return sorted(tables)

"""`shardctl migrate status`: which revision each shard has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardctl.cli.migrate.shards import Schemas, schemas_of
from shardctl.cli.provision import DatabaseOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

if TYPE_CHECKING:
    from shardctl.migrate.standing import Standing


def status(file: FileOption = DEFAULT_FILE, database: DatabaseOption = None, as_json: JsonOption = False) -> int:
    """Show each shard's revision, and what is pending, under way or half done there."""
    from shardctl.migrate import standing

    with schemas_of(file, database) as schemas:
        standings = schemas.look()
    faults = [*standing.unknown(standings), *standing.faults(schemas.history, standings)]
    if as_json:
        print_json({"head": schemas.history.head, "shards": _as_json(schemas, standings), "faults": faults})
    else:
        _print(schemas, standings)
    for fault in faults:
        say(f"error: {fault}")
    if not faults:
        _next_step(schemas, standings)
    return EXIT_REFUSED if faults else EXIT_DONE


def _state_of(schemas: Schemas, standing: Standing) -> str:
    if standing.fault:
        return "?"
    if standing.half_done():
        return "half done"
    if any(name in standing.entries for name in schemas.history.ids if name not in standing.done):
        return "under way"
    return "pending" if standing.pending(schemas.history) else "done"


def _print(schemas: Schemas, standings: Mapping[str, Standing]) -> None:
    rows = []
    for name, standing in standings.items():
        state = _state_of(schemas, standing)
        revision = "?" if standing.fault else standing.current(schemas.history) or "-"
        count = "?" if standing.fault else str(len(standing.pending(schemas.history)))
        rows.append((name, standing.product, revision, count, state))
    print_table(("shard", "database", "revision", "pending", "state"), rows, right=("pending",))


def _as_json(schemas: Schemas, standings: Mapping[str, Standing]) -> list[dict[str, Any]]:
    return [
        {
            "shard": name,
            "database": standing.product,
            "state": None if standing.fault else _state_of(schemas, standing),
            "revision": None if standing.fault else standing.current(schemas.history),
            "pending": None if standing.fault else [revision.id for revision in standing.pending(schemas.history)],
            "lacks": None if standing.fault else [f"{lack.table}.{lack.column}".rstrip(".") for lack in standing.lacks],
            "error": standing.fault or None,
        }
        for name, standing in standings.items()
    ]


def _next_step(schemas: Schemas, standings: Mapping[str, Standing]) -> None:
    lacks = {str(lack) for standing in standings.values() for lack in standing.lacks}
    states = {_state_of(schemas, standing) for standing in standings.values()}
    if states & {"half done", "under way"}:
        say("An `apply` has not come to its end; until then no rebalance begins. Next: `shardctl migrate apply --yes`.")
    elif "pending" in states:
        say("Next: `shardctl migrate apply`.")
    elif lacks:
        say("\n".join(sorted(lacks)))

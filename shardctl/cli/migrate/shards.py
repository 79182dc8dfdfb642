"""What the commands on schemas share: the fleet, its revisions, its databases, and what these report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardctl.cli.provision import given_urls
from shardctl.cli.terminal import waiting
from shardctl.errors import ShardctlError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from shardctl.fleet.spec import Fleet
    from shardctl.migrate.history import History
    from shardctl.migrate.standing import Standing


class RefusedError(ShardctlError):
    """The tables are not changed, for each of these reasons."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("not now:\n" + "\n".join(f"- {reason}" for reason in reasons))


@dataclass(frozen=True, slots=True)
class Schemas:
    fleet: Fleet
    history: History
    engines: Mapping[str, Engine]

    def look(self) -> dict[str, Standing]:
        """By shard, in the file's order. What isn't known is in `Standing.fault`."""
        from concurrent.futures import ThreadPoolExecutor

        from shardctl.migrate.standing import look

        shards, kinds = self.fleet.shards, self.fleet.message_types
        with waiting(f"the databases of {', '.join(self.engines)}"), ThreadPoolExecutor(len(shards)) as threads:
            standings = threads.map(lambda shard: look(shard, self.engines[shard.name], kinds), shards)
            return {standing.shard: standing for standing in standings}


@contextmanager
def schemas_of(file: Path, database: Sequence[str] | None) -> Iterator[Schemas]:
    """Raises UsageError where Alembic or a revision is at fault, ProvisionError where a database's URL is lacking."""
    from shardctl.fleet.load import load_fleet
    from shardctl.migrate import extra, history
    from shardctl.provision import database_urls
    from shardctl.shard import database as databases

    fleet = load_fleet(file)
    extra.require()
    revisions = history.read(file)
    urls = database_urls(fleet, given_urls(database or ()), os.environ, "the tables of each shard are compared")
    with databases.connected(fleet.fleet, urls) as engines:
        yield Schemas(fleet, revisions, engines)


def refuse(reasons: Sequence[str]) -> None:
    if reasons:
        raise RefusedError(reasons)


def known(schemas: Schemas) -> dict[str, Standing]:
    """What every shard reports. Raises RefusedError where one doesn't answer, or has what these revisions don't explain."""
    from shardctl.migrate import standing

    standings = schemas.look()
    refuse(list(standing.unknown(standings)))
    refuse(list(standing.faults(schemas.history, standings)))
    return standings


def pending(schemas: Schemas, standings: Mapping[str, Standing]) -> dict[str, list[str]]:
    """The shards that lack each revision, by its id, in the order of the revisions; only those that one lacks."""
    lacking = {
        name: [shard for shard, standing in standings.items() if name not in standing.done]
        for name in schemas.history.ids
    }
    return {name: shards for name, shards in lacking.items() if shards}

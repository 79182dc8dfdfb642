"""Revisions on databases whose tables were made from `shards.yaml` a moment ago. Without revisions, Alembic isn't loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from shardctl.fleet.spec import Fleet
from shardctl.migrate import extra, history
from shardctl.shard import database
from shardctl.shard.membership import Membership


def bring_up(
    file: Path, fleet: Fleet, urls: Mapping[str, str], tell: Callable[[str, str], None] = lambda *_: None
) -> None:
    """Apply the revisions beside the fleet's file to these shards, one after another. Safe to run again.

    Raises RevisionError, ApplyError, DatabaseError; UsageError where there are revisions and Alembic isn't installed.
    """
    if not history.folder_of(file).exists():
        return
    extra.require()
    revisions = history.read(file)
    if not revisions.revisions:
        return
    from shardctl.migrate import run

    for shard, url in urls.items():
        engine = database.connect(url, whose=Membership(fleet.fleet, shard))
        try:
            run.bring_up(fleet, revisions, shard, engine, tell)
        finally:
            engine.dispose()

"""Pending revisions for people: which shards lack them, and their SQL in the dialect of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardctl.cli.terminal import out

if TYPE_CHECKING:
    from shardctl.cli.migrate.shards import Schemas
    from shardctl.migrate.history import Revision
    from shardctl.migrate.standing import Standing


def described(
    schemas: Schemas, standings: Mapping[str, Standing], pending: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Each pending revision, as JSON has it. `sql` is null where it can't be shown without a database, and `why` says so."""
    return [
        _described(revision, schemas, standings, pending[revision.id])
        for revision in schemas.history.revisions
        if revision.id in pending
    ]


def _described(
    revision: Revision, schemas: Schemas, standings: Mapping[str, Standing], shards: list[str]
) -> dict[str, Any]:
    from shardctl.migrate.preview import preview

    previews = {standings[shard].product: preview(revision, schemas.engines[shard].dialect) for shard in shards}
    return {
        "revision": revision.id,
        "title": revision.title,
        "file": str(revision.path),
        "shards": shards,
        "contracts": any(seen.contracts for seen in previews.values()),
        "sql": {product: None if seen.fault else seen.sql for product, seen in previews.items()},
        "why": next((seen.fault for seen in previews.values() if seen.fault), None),
    }


def show(revisions: list[dict[str, Any]]) -> None:
    for revision in revisions:
        step = "contracts" if revision["contracts"] else "expands"
        out(
            f"{revision['revision']} {revision['title']} ({revision['file']}), {step}: pending on {', '.join(revision['shards'])}"
        )
        for product, sql in revision["sql"].items():
            if sql is None:
                out(f"  {product}: its SQL can't be shown without a database: {revision['why']}")
                continue
            lines = [line for line in sql.splitlines() if line.strip()]
            out("\n".join((f"  {product}:", *(f"    {line}" for line in lines))))

"""Changes that a running local fleet can't apply without a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet, Shard

_FIXED = (
    "fleet",
    "project",
    "topic",
    "routing",
    "local",
)  # names and places of what runs already, and how keys map to slots


class CantApplyError(ShardctlError):
    """The fleet stays as it was."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def why_not(before: Fleet, after: Fleet) -> tuple[str, ...]:
    """Why a fleet that runs as `before` can't become `after`; nothing where it can."""
    return tuple(_reasons(before, after))


def _reasons(before: Fleet, after: Fleet) -> Iterator[str]:
    for field in _FIXED:
        if getattr(before, field) != getattr(after, field):
            yield f"`{field}` can't change while the fleet runs: stop it and start it again"
    known = {shard.name: shard for shard in before.shards}
    for shard in after.shards:
        was = known.get(shard.name)
        if was and _differ(was, shard) and shard.previous is None and was.previous is None:
            yield f"the slots of {shard.name} changed, and their rows would stay behind: `shardctl rebalance` moves both"


def _differ(was: Shard, shard: Shard) -> bool:
    return (was.generation, was.slots) != (shard.generation, shard.slots)

"""Giving a shard a database that belongs to another: a copy, or one whose fleet or shard has ended.

Only where a person names whom it belonged to, and no consumer works on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine

from shardctl.errors import ShardctlError, UsageError
from shardctl.shard import membership, upgrade
from shardctl.shard.databaseurl import shown
from shardctl.shard.membership import ForeignDatabaseError, Membership


class TakeoverError(ShardctlError):
    """The database can't be taken over now. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """From whom: whole `fleets`, each database for the shard of the same name, and single `shards`, for any."""

    fleets: frozenset[str] = frozenset()
    shards: frozenset[Membership] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str]) -> Takeover:
        """From `FLEET` and `FLEET/SHARD`. Raises UsageError."""
        parts = [name.split("/") for name in names]
        for part in parts:
            if len(part) > 2 or not all(part):
                raise UsageError(
                    f"--take-over wants FLEET or FLEET/SHARD, such as orders or orders/s0, and not {'/'.join(part)!r}."
                )
        return cls(
            frozenset(part[0] for part in parts if len(part) == 1),
            frozenset(Membership(*part) for part in parts if len(part) == 2),
        )

    def includes(self, former: Membership, own: Membership) -> bool:
        return former in self.shards or (former.fleet in self.fleets and former.shard == own.shard)


NOBODY = Takeover()


def former(engine: Engine, own: Membership, takeover: Takeover) -> Membership | None:
    """From whom the database is to be taken; None where it is the shard's own, or nothing is recorded.

    Raises ForeignDatabaseError where it isn't to be taken from them, TakeoverError where consumers work on it.
    """
    with engine.connect() as connection:
        present = membership.read(connection)
    if present is None or present == own:
        return None
    if not takeover.includes(present, own):
        raise ForeignDatabaseError(shown(engine.url), present, own)
    if seen := upgrade.seen_consumers(engine):
        raise TakeoverError(
            f"database {shown(engine.url)} belongs to {present}, and its consumers run: {seen}. Scale them to 0, wait "
            f"{upgrade.SEEN_WITHIN.seconds} s, and run this again."
        )
    return present

"""The lanes of several databases as they were seen last, read again where the fence shows that something changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from shardctl.shard import lanes
from shardctl.shard.database import DatabaseError
from shardctl.shard.lanes import Lane

RETRY_SECONDS = 1.0


class LaneViews:
    """`seen` is what `handover.standing` reads; `unreachable` says which databases don't answer for now, and why."""

    def __init__(self, databases: Mapping[str, Engine]) -> None:
        self._databases = databases
        self._versions: dict[str, int | None] = {}
        self._not_before: dict[str, float] = {}
        self.seen: dict[str, dict[int, Lane]] = {name: {} for name in databases}
        self.unreachable: dict[str, str] = {}

    def read_everything(self, now: float) -> bool:
        """Whether every database answered."""
        for name in self._databases:
            self.doubt([name])
            self._try(name, None, now)
        return not self.unreachable

    def read_changed(self, names: Iterable[str], slots: Collection[int], now: float) -> bool:
        """Look at some databases for some slots; whether anything may have changed."""
        changed = [self._try(name, slots, now) for name in names]
        return any(changed)

    def doubt(self, names: Iterable[str]) -> None:
        """Read these again at the next look: what is seen there may lack slots that no look has read so far."""
        for name in names:
            self._versions.pop(name, None)

    def _try(self, name: str, slots: Collection[int] | None, now: float) -> bool:
        if now < self._not_before.get(name, now):
            return False
        try:
            changed = self._read(name, slots)
        except (OperationalError, InterfaceError, InternalError, OSError) as error:
            self.unreachable[name] = f"database of shard {name}: {first_line(error)}"
            self._not_before[name] = now + RETRY_SECONDS
            return False
        except SQLAlchemyError as error:
            raise DatabaseError(f"database of shard {name}: {first_line(error)}") from error
        self.unreachable.pop(name, None)
        return changed

    def _read(self, name: str, slots: Collection[int] | None) -> bool:
        with self._databases[name].connect() as connection:
            version = lanes.version(connection)  # first: what changes after it is found at the next look
            if name in self._versions and self._versions[name] == version:
                return False
            current = lanes.read(connection, slots)
        if slots is None:
            self.seen[name] = current
        else:  # a lane that is gone has to go here too: another process has closed the rebalance
            self.seen[name] = {
                number: lane for number, lane in self.seen[name].items() if lane.slot not in slots
            } | current
        self._versions[name] = version
        return True


def first_line(error: BaseException) -> str:
    """What a database's driver says, without the statement and its parameters."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).strip().partition("\n")[0]

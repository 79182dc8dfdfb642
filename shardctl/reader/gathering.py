"""One statement over all shards: each slot is read exactly once, in the database where it is active.

Invariants:
- the databases are read at different moments, and slots move between them. So each view claims, of the slots that are active in
  it, those that nobody has claimed yet, and its statement returns rows of these alone. No slot is read twice, and a slot that is
  still unclaimed once all have been asked is looked for again;
- each slot's rows are of one moment after the call began (with `max_staleness`, up to so much before): the rows of two slots
  may be of two moments;
- a slot that was not read is in `failures`, never missing silently.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shardctl.fleet.keyspace import SlotSet
from shardctl.reader.active import Active
from shardctl.reader.answer import Failure, PartialReadError, Rows
from shardctl.reader.order import Order, Part
from shardctl.reader.owners import MAX_PAUSE_SECONDS, QUIET_LOOKS, Owners
from shardctl.reader.routes import Routes
from shardctl.reader.view import View
from shardctl.shard import database
from shardctl.shard.schema import LaneState


@dataclass(frozen=True, slots=True)
class _Look:
    """What one database said: the slots that are due there, and its rows, where it had any to claim."""

    due: frozenset[int]
    part: Part | None = None


class Gathering:
    """`calls` gives what to run next, until there is nothing; report each with `done`. The callers run them, at once or not."""

    def __init__(
        self,
        owners: Owners,
        routes: Routes,
        holders: tuple[str, ...],
        statement: Active,
        order: Order,
        max_staleness: timedelta | None,
    ) -> None:
        self._owners, self._routes, self._holders = owners, routes, holders
        self._statement, self._order, self._max_staleness = statement, order, max_staleness
        self._lock = threading.Lock()
        self._missing = set(range(routes.slots))
        self._claimed: dict[str, set[int]] = {}  # and not read yet
        self._failed: dict[str, str] = {}
        self._parts: list[Part] = []
        self._due: set[int] = set()
        self.rounds = self._quiet = 0

    def calls(self, seconds: float) -> dict[str, Callable[[], _Look]]:
        """By shard. `seconds` is the time that is left for them."""
        if self.rounds:
            self._quiet = 0 if self._due & self._missing else self._quiet + 1
        if not self._missing or self._quiet >= QUIET_LOOKS:
            return {}
        self.rounds += 1
        self._due = set()
        return {shard: partial(self._read, shard, seconds) for shard in self._holders if shard not in self._failed}

    @property
    def pause_seconds(self) -> float:
        """Before the next calls: until slots that are changing hands may have arrived."""
        return MAX_PAUSE_SECONDS if self._missing else 0.0

    def done(self, shard: str, look: _Look) -> None:
        self._claimed.pop(shard, None)
        self._due |= look.due
        if look.part is not None:
            self._parts.append(look.part)

    def failed(self, shard: str, reason: str) -> None:
        """The shard isn't asked again."""
        self._failed[shard] = reason

    def result(self, *, take_partial: bool) -> Rows[Any]:
        """Raises PartialReadError where something is missing, unless it is to `take_partial` answers, and ReadError."""
        rows = Rows(tuple(self._order.merge(self._parts)), tuple(self._failures()))
        if rows.failures and not take_partial:
            raise PartialReadError(rows.failures, rows)
        return rows

    def _failures(self) -> Iterator[Failure]:
        with self._lock:
            missing = set(self._missing)
        is_incomplete = bool(missing)
        listed = {shard.name: set(shard.slots) for shard in self._routes.fleet.shards}
        for shard, reason in self._failed.items():
            slots = self._claimed.get(shard, set()) | (missing & listed.get(shard, set()))
            missing -= slots
            if (
                slots or is_incomplete
            ):  # else each slot was read elsewhere: the shard is one to come, or one that has left
                yield Failure(shard, SlotSet.of(slots), reason)
        if missing & self._due:
            yield Failure("", SlotSet.of(missing & self._due), "they are changing hands")
        if missing - self._due:
            reason = "they are active in no database that answered"
            yield Failure("", SlotSet.of(missing - self._due), reason)

    def _read(self, shard: str, seconds: float) -> _Look:
        """Raises ShardctlError."""
        view = self._view(shard, seconds)
        try:
            active = {slot for slot, states in view.lanes.items() if LaneState.ACTIVE in states}
            due = frozenset(slot for slot, states in view.lanes.items() if LaneState.DUE in states)
            claimed = self._claim(shard, active)
            return _Look(due, self._part(shard, view, claimed, active) if claimed else None)
        finally:
            view.close()

    def _view(self, shard: str, seconds: float) -> View:
        """A replica's in the first round alone: what is missing then is moving, and a replica learns of it late."""
        if self._max_staleness is not None and self.rounds == 1:
            view = self._owners.replica(shard, self._max_staleness, statement_seconds=seconds)
            if view is not None:
                return view
        return self._owners.primary(shard, statement_seconds=seconds)

    def _claim(self, shard: str, active: set[int]) -> set[int]:
        with self._lock:
            claimed = active & self._missing
            self._missing -= claimed
            self._claimed.setdefault(shard, set()).update(claimed)
        return claimed

    def _part(self, shard: str, view: View, claimed: set[int], active: set[int]) -> Part:
        statement = self._order.of(self._statement.of(claimed, active))
        try:
            with view.session() as session:
                result = session.execute(statement).freeze()
                width = len(result().keys()) - self._order.width
                rows = result().columns(*range(width)).all()
                keys = result().columns(*range(width, width + self._order.width)).all() if self._order.width else ()
        except SQLAlchemyError as error:
            raise database.error_of(view.engine, error) from error
        return Part(shard, rows, keys, view.engine.dialect.name == "postgresql")

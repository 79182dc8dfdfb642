"""Finds the database in which a slot is active, and opens a view of it.

Invariants:
- a view is returned only where it has the slot's lane active itself, so a database that has handed the slot over is never read;
- the view is of a moment after the call began, unless the caller accepts one that is up to `max_staleness` older;
- the first view of each engine also reads whose the database is, and one that belongs to another fleet or shard is never read.
What was found last, like the file, only says where to ask first. So a rebalance is followed without a new file, as long as the
reader has an engine for the database that the slot moves to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import count

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.reader.errors import ReadError, SlotMovingError, SlotUnknownError
from shardctl.reader.routes import Routes
from shardctl.reader.view import View
from shardctl.shard import database, membership
from shardctl.shard.database import DatabaseError
from shardctl.shard.membership import ForeignDatabaseError, Membership
from shardctl.shard.schema import LaneState
from shardctl.supervision.backoff import backoff

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.005, 0.1
QUIET_LOOKS = 2  # of databases that are looked at one after the other, one look may miss a slot that moves meanwhile
RESTING_SECONDS = 5.0  # a replica that could not be read is left alone for so long

_log = logging.getLogger(__name__)
Sleep = Callable[[float], None]


class Owners:
    """`databases`: an engine for each shard; `replicas`: more of them, for reads that may be stale."""

    def __init__(
        self,
        routes: Routes,
        databases: Mapping[str, Engine],
        replicas: Mapping[str, Sequence[Engine]],
        sleep: Sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.databases, self._routes, self._replicas = databases, routes, replicas
        self._sleep, self._clock = sleep, clock
        self._last: dict[tuple[tuple[str, ...], int], str] = {}
        self._resting: dict[Engine, float] = {}
        self._known: set[Engine] = set()  # to be of their shards
        self._numbers = count()
        if missing := [name for name in routes.shards if name not in databases]:
            raise UsageError(f"databases has no engine for {', '.join(missing)}. Pass one for each shard of the file.")
        if unknown := [name for name in replicas if name not in databases]:
            raise UsageError(
                f"replicas names {', '.join(unknown)}, which databases doesn't have. Pass their primaries there."
            )

    def open(
        self, slot: int, holders: tuple[str, ...], patience_seconds: float, max_staleness: timedelta | None = None
    ) -> View:
        """A view in which the slot is active. Close it. Raises DatabaseError, SlotMovingError and SlotUnknownError.

        Where the slot is between two databases, waits for up to `patience_seconds`.
        """
        known = self._last.get((holders, slot))
        if max_staleness is not None:
            first = known or next(self._routes.listed(holders, slot))
            if view := self.replica(first, max_staleness, (slot,)):
                return view
        if known is not None:  # nearly always
            try:
                view = self.primary(known, (slot,))
            except DatabaseError:
                pass  # the slot may have moved away: the others are asked, and this one again
            else:
                if LaneState.ACTIVE in view.lanes.get(slot, ()):
                    return view
                view.close()
        return self._look_everywhere(slot, holders, patience_seconds)

    def primary(self, shard: str, slots: tuple[int, ...] = (), statement_seconds: float | None = None) -> View:
        """Raises DatabaseError, and ReadError where the engine leads to a standby, whose lanes may be old."""
        view = self._view(shard, self.databases[shard], slots, statement_seconds)
        if view.is_standby:
            view.close()
            raise ReadError(
                f"shard {shard}: the engine's server is a standby or read-only. Give the primary's URL in databases, and "
                "this one in replicas."
            )
        return view

    def replica(
        self,
        shard: str,
        max_staleness: timedelta,
        slots: tuple[int, ...] = (),
        statement_seconds: float | None = None,
    ) -> View | None:
        """A replica's view that is new enough, and has the given slots active; None where there is none."""
        engines = self._replicas.get(shard, ())
        first = next(self._numbers)
        for number in range(len(engines)):
            engine = engines[(first + number) % len(engines)]
            if self._resting.get(engine, 0.0) > self._clock():
                continue
            try:
                view = self._view(shard, engine, slots, statement_seconds, replica=True)
            except DatabaseError as error:
                self._resting[engine] = self._clock() + RESTING_SECONDS
                _log.warning("A replica of shard %s can't be read, and is left alone for a while: %s", shard, error)
                continue
            is_active = all(LaneState.ACTIVE in view.lanes.get(slot, ()) for slot in slots)
            if is_active and view.age_seconds is not None and view.age_seconds <= max_staleness.total_seconds():
                return view
            view.close()
        return None

    def _view(
        self,
        shard: str,
        engine: Engine,
        slots: tuple[int, ...],
        statement_seconds: float | None,
        *,
        replica: bool = False,
    ) -> View:
        view = View.open(engine, slots, replica=replica, statement_seconds=statement_seconds)
        if engine not in self._known:
            try:
                membership.check(view.connection, Membership(self._routes.fleet.fleet, shard))
            except ForeignDatabaseError as error:
                view.close()
                raise DatabaseError(str(error)) from error
            except SQLAlchemyError as error:
                view.close()
                raise database.error_of(engine, error) from error
            self._known.add(engine)
        return view

    def _look_everywhere(self, slot: int, holders: tuple[str, ...], patience_seconds: float) -> View:
        until, looks, quiet = self._clock() + patience_seconds, 0, 0
        while True:
            errors: list[DatabaseError] = []
            states: dict[str, frozenset[LaneState]] = {}
            for shard in self._routes.listed(holders, slot):
                try:
                    view = self.primary(shard, (slot,))
                except DatabaseError as error:
                    errors.append(error)
                    continue
                states[shard] = view.lanes.get(slot, frozenset())
                if LaneState.ACTIVE in states[shard]:
                    self._last[holders, slot] = shard
                    return view
                view.close()
            due = [shard for shard in states if LaneState.DUE in states[shard]]
            looks, quiet = looks + 1, 0 if due else quiet + 1
            if quiet >= QUIET_LOOKS or self._clock() >= until:
                raise _refusal(slot, due, errors)
            if looks == 1 and due:
                _log.info("Slot %s is changing hands to shard %s; a read of it waits.", slot, due[0])
            self._sleep(backoff(looks, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, 1.0))


def _refusal(slot: int, due: list[str], errors: list[DatabaseError]) -> Exception:
    if due:
        return SlotMovingError(f"slot {slot} is changing hands to shard {due[0]}, and hasn't arrived yet. Try again.")
    if errors:
        return errors[0]
    return SlotUnknownError(
        f"slot {SlotSet.of((slot,))} is active in no database that the reader has. If shards.yaml has got a shard since, "
        "load it again and add the shard's engine; else `shardctl verify` says what is wrong."
    )

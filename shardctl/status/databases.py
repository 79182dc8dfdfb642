"""What each shard's database reports of its slots, its parked keys and its replicas. Only reads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Lock

from sqlalchemy import Connection, Engine, and_, func, select

from shardctl.errors import ShardctlError
from shardctl.rebalance import journal
from shardctl.rebalance.planning.rates import measured
from shardctl.rebalance.preflight import Known
from shardctl.shard import database, lanes, membership, schema
from shardctl.shard.database import snapshot
from shardctl.shard.lanes import Lane
from shardctl.shard.membership import Membership
from shardctl.shard.schema import LaneState, parked, parked_keys, rebalances, replicas
from shardctl.status.report import DatabaseFacts, NotReady

HEAT_WINDOW = timedelta(minutes=2)


class Databases:
    """Keeps an engine for each shard's URL, and its lanes until the fence's version changes. Threads may share it."""

    def __init__(self) -> None:
        self._engines: dict[tuple[Membership, str], Engine] = {}
        self._lanes: dict[str, tuple[int | None, Mapping[int, Lane]]] = {}
        self._lock = Lock()

    def look(self, whose: Membership, url: str) -> DatabaseFacts:
        """Raises DatabaseError."""
        engine = self._engine(whose, url)
        with snapshot(engine) as connection:
            if not engine.dialect.has_table(connection, rebalances.name):
                return DatabaseFacts(Known({}, {}, {}, empty=True))
            seen = _seen(connection)
            known = Known(self._lanes_of(url, connection), journal.read(connection), _readers(seen))
            keys, messages = _parked(connection)
            not_ready = _not_ready(connection) if keys else ()
            recorded = membership.read(connection) is not None
        silent_seconds = {name: ago.total_seconds() for name, (ago, _) in seen.items()}
        generations = {name: numbers for name, (_, numbers) in seen.items()}
        return DatabaseFacts(known, keys, messages, silent_seconds, generations, not_ready, recorded)

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                with suppress(Exception):  # one that hangs in another thread may refuse to
                    engine.dispose()
            self._engines.clear()

    def _engine(self, whose: Membership, url: str) -> Engine:
        with self._lock:
            if (whose, url) not in self._engines:
                self._engines[whose, url] = database.connect(url, whose=whose)
            return self._engines[whose, url]

    def _lanes_of(self, url: str, connection: Connection) -> Mapping[int, Lane]:
        version = lanes.version(connection)
        before = self._lanes.get(url)
        if before is None or before[0] != version:
            before = self._lanes[url] = version, lanes.read(connection)
        return before[1]


def heat(whose: Membership, url: str) -> dict[int, float]:
    """Writes a second of each slot over the last minutes, counted in the inbox: too expensive to query often."""
    return measured(whose.fleet, {whose.shard: url}, HEAT_WINDOW, datetime.now(UTC))


def _seen(connection: Connection) -> dict[str, tuple[timedelta, tuple[int, ...]]]:
    """For each replica the time since its last heartbeat, by the database's clock, and the generations that it reads."""
    now = connection.scalar(select(func.now()))
    if not isinstance(now, datetime):
        raise ShardctlError("the database doesn't report its time")
    return {
        row.replica: (_utc(now) - _utc(row.seen_time), tuple(map(int, filter(None, row.generations.split(",")))))
        for row in connection.execute(select(replicas))
    }


def _readers(seen: Mapping[str, tuple[timedelta, tuple[int, ...]]]) -> dict[int, timedelta]:
    readers: dict[int, timedelta] = {}
    for ago, generations in seen.values():
        for generation in generations:
            readers[generation] = min(ago, readers.get(generation, ago))
    return readers


def _parked(connection: Connection) -> tuple[int, int]:
    """Keys and messages that are parked, of slots that are active here."""
    counts = []
    for table in (parked_keys, parked):
        active = and_(schema.lanes.c.slot == table.c.slot, schema.lanes.c.state == LaneState.ACTIVE)
        counts.append(connection.scalar(select(func.count()).select_from(table.join(schema.lanes, active))) or 0)
    return counts[0], counts[1]


def _not_ready(connection: Connection) -> tuple[NotReady, ...]:
    active = and_(schema.lanes.c.slot == parked_keys.c.slot, schema.lanes.c.state == LaneState.ACTIVE)
    query = (
        select(parked_keys.c.message_type, func.count(), func.max(parked_keys.c.detail))
        .select_from(parked_keys.join(schema.lanes, active))
        .where(parked_keys.c.reason == schema.TABLE_NOT_READY)
        .group_by(parked_keys.c.message_type)
        .order_by(parked_keys.c.message_type)
    )
    return tuple(NotReady(*row) for row in connection.execute(query))


def _utc(moment: datetime) -> datetime:
    """Sessions are in UTC, but not every driver sets the time zone."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""Lanes: what a shard's database holds of each slot in each generation, and every change that a hand-over makes to them.

Invariants kept here and in the transactions that call this:
- at most one lane of a slot is active, over all databases of the fleet: one becomes active only after the one before it has left;
- a transaction that changes lanes takes the fence alone first. Each write transaction shares the fence until it commits, so what
  it has read of the lanes can't change under it, and after a change has committed nothing is written by the lanes of before;
- a lane is left only by the barrier that its own database awaits. It is awaited only once the slot's next lane is due, and its
  token is unknown to everybody else until it is published. So while a slot is arriving, no message can end the lane it is in,
  and a barrier that is met was published after the lane became due;
- a lane's log begins and ends under the fence alone, and has a name that no other log of the slot ever has. So a reader that sees
  the same name twice knows that every change in between is in it: see `shardctl.shard.changes`;
- a log that is named after a barrier began in the transaction in which its slot became active in this database: it has all
  changes since, also where later lanes of the slot in this database have gone on with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, delete, insert, not_, select, update

from shardctl.fleet.keyspace import SlotSet, lane_of
from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import LaneState, RebalanceState, barriers, bases, fence, lanes, rebalances

TOKEN_BYTES = 16
_SINCE = "since-"  # no random name begins so


@dataclass(frozen=True, slots=True)
class Lane:
    """One slot in one generation. `barrier_time_us`: of the barrier that it began with, or ended with once it has left.

    `log` names the log of its changes; None where they aren't logged.
    """

    slot: int
    generation: int
    state: LaneState
    barrier_time_us: int | None = None
    log: str | None = None

    @property
    def logged_since_active(self) -> bool:
        """Whether all changes since it became active are logged: then it can go back without a copy."""
        return self.state == LaneState.ACTIVE and self.log is not None and self.log.startswith(_SINCE)


@dataclass(frozen=True, slots=True)
class Met:
    """A barrier that a consumer met on a lane: the token that it carries, and when it was published."""

    slot: int
    token: str
    time_us: int


def log_since(barrier_time_us: int) -> str:
    """The name of a log that began when its lane became active, after a barrier that was published then."""
    return f"{_SINCE}{barrier_time_us}"


def version(connection: Connection) -> int | None:
    """Grows with every change of a lane. None where the tables are empty."""
    return connection.scalar(select(fence.c.version))


def read(connection: Connection, slots: Collection[int] | None = None) -> dict[int, Lane]:
    """Every lane of the database, or those of some slots, by `keyspace.lane_of`.

    Share the fence, or take it alone, to rely on them.
    """
    query = select(lanes.c.slot, lanes.c.generation, lanes.c.state, lanes.c.barrier_time_us, lanes.c.log)
    if slots is not None:
        query = query.where(lanes.c.slot.in_(slots))
    return {
        lane_of(slot, generation): Lane(slot, generation, LaneState(state), barrier_time_us, log)
        for slot, generation, state, barrier_time_us, log in connection.execute(query)
    }


def take_fence_alone(connection: Connection) -> None:
    """Until the transaction ends nobody else writes to the shard, and then everybody reads the lanes again."""
    if connection.dialect.name == "postgresql":
        # A row's sharers may come and go for ever without a gap; a table's lock keeps a queue, and serves it in order.
        connection.exec_driver_sql(f"LOCK TABLE {fence.name} IN EXCLUSIVE MODE")
    connection.execute(update(fence).values(version=fence.c.version + 1))


def share_fence(connection: Connection) -> None:
    """Until the transaction ends nobody changes a lane or the journal. Writers don't notice."""
    connection.exec_driver_sql(sharing_fence(connection.dialect.name)).first()


def sharing_fence(product: str, *columns: str) -> str:
    """SQL that shares the fence's row until the transaction ends; its version, then more columns that ride along."""
    return f"SELECT {', '.join(('version', *columns))} FROM {fence.name} WHERE id = 1{_SHARED[product]}"  # noqa: S608


_SHARED = {
    "postgresql": " FOR SHARE",
    **dict.fromkeys(MYSQL, " LOCK IN SHARE MODE"),
    "sqlite": "",  # it has one writer a database: BEGIN IMMEDIATE takes the place of both kinds of fence lock
}


def hold(connection: Connection, slot: int, generation: int) -> Lane | None:
    """A lane that nobody else changes until the transaction ends. Writers don't notice."""
    return hold_all(connection, (slot,), generation).get(slot)


def hold_all(connection: Connection, slots: Collection[int], generation: int) -> dict[int, Lane]:
    """The same of several slots, by slot. They are held in the order of their slots: so two that hold some don't deadlock."""
    columns = lanes.c.slot, lanes.c.state, lanes.c.barrier_time_us, lanes.c.log
    query = select(*columns).where(lanes.c.generation == generation, lanes.c.slot.in_(list(slots)))
    rows = connection.execute(query.order_by(lanes.c.slot).with_for_update())
    return {slot: Lane(slot, generation, LaneState(state), time_us, log) for slot, state, time_us, log in rows}


def announce(connection: Connection, slot_set: SlotSet, generation: int) -> None:
    """Mark slots as arriving in a generation, where the database has nothing of them in it yet."""
    take_fence_alone(connection)
    there = set(connection.scalars(select(lanes.c.slot).where(lanes.c.generation == generation)))
    new = [
        {"slot": slot, "generation": generation, "state": LaneState.ARRIVING} for slot in slot_set if slot not in there
    ]
    if new:
        connection.execute(insert(lanes), new)


def make_due(connection: Connection, slots: Iterable[int], generation: int) -> None:
    """Arriving slots become due: from the commit on their barriers may be published, and nobody acks for them any more.

    The lanes are held first: where another executor copies one of them, this waits without the fence, and holds no writer up.
    """
    distinct = dict.fromkeys(slots)
    hold_all(connection, distinct, generation)
    take_fence_alone(connection)
    _move(connection, distinct, generation, LaneState.ARRIVING, LaneState.DUE)


def begin_logs(connection: Connection, slots: Collection[int], generation: int) -> None:
    """From the commit on every change of these slots is logged, and what isn't logged is committed. A log that there is stays.

    Of active lanes alone.
    """
    take_fence_alone(connection)
    active = and_(lanes.c.generation == generation, lanes.c.state == LaneState.ACTIVE, lanes.c.log.is_(None))
    change = update(lanes).where(active, lanes.c.slot.in_(list(slots)))
    connection.execute(change.values(log=secrets.token_hex(TOKEN_BYTES)))


def end_logs(connection: Connection) -> None:
    """Nothing is logged any more, and no base counts: neither a copy nor what a slot left behind elsewhere."""
    take_fence_alone(connection)
    connection.execute(update(lanes).where(lanes.c.log.is_not(None)).values(log=None))
    connection.execute(delete(bases))


_FOR_THE_WAY_BACK = and_(lanes.c.state == LaneState.ACTIVE, lanes.c.log.startswith(_SINCE))


def end_logs_of_copies(connection: Connection) -> None:
    """For the end of an abort: no copy counts any more. The logs of active lanes that began with them go on, for the way back."""
    take_fence_alone(connection)
    connection.execute(update(lanes).where(lanes.c.log.is_not(None), not_(_FOR_THE_WAY_BACK)).values(log=None))
    connection.execute(delete(bases))


def logged_for_the_way_back(connection: Connection) -> list[int]:
    """Slots whose logs began when they became active here."""
    return list(connection.scalars(select(lanes.c.slot).where(_FOR_THE_WAY_BACK)))


def end_logs_for_the_way_back(connection: Connection, slots: Collection[int]) -> int:
    """These slots will be copied on the way back; how many logs ended. A slot whose barrier may be out keeps its log, since it
    would be copied in its pause.
    """
    take_fence_alone(connection)
    awaited = select(barriers.c.slot).where(
        barriers.c.slot == lanes.c.slot, barriers.c.generation == lanes.c.generation
    )
    ending = and_(_FOR_THE_WAY_BACK, lanes.c.slot.in_(list(slots)), not_(awaited.exists()))
    return connection.execute(update(lanes).where(ending).values(log=None)).rowcount


def await_barriers(connection: Connection, slots: Collection[int], generation: int, rebalance: str) -> dict[int, str]:
    """From the commit on, each slot's barrier ends its lane in `generation` here; the tokens that the barriers must carry.

    For slots whose next lane is due, or becomes due in this transaction. Slots that have left meanwhile are left out. Done again,
    it gives the same tokens. `journal.hold_open` keeps other executors out meanwhile.
    """
    lane = and_(lanes.c.generation == generation, lanes.c.state == LaneState.ACTIVE, lanes.c.slot.in_(list(slots)))
    here = connection.scalars(select(lanes.c.slot).where(lane)).all()
    awaited = _awaited(connection, here, generation)
    tokens = {slot: awaited[slot].token for slot in here if slot in awaited and awaited[slot].rebalance == rebalance}
    new = {slot: secrets.token_hex(TOKEN_BYTES) for slot in here if slot not in tokens}
    if new:
        _forget_barriers(connection, new, generation)
        more = {"generation": generation, "rebalance": rebalance}
        connection.execute(insert(barriers), [{"slot": slot, "token": token, **more} for slot, token in new.items()])
    return tokens | new


def activate(
    connection: Connection, barrier_times_us: Mapping[int, int], generation: int, *, logged: Collection[int] = ()
) -> None:
    """Slots whose rows and inbox are here, copied and verified in this transaction, become active. From due alone.

    Of those `logged`, every change is logged from the same commit on: so what their last lanes left behind is a base for the
    way back.
    """
    take_fence_alone(connection)
    _move(connection, barrier_times_us, generation, LaneState.DUE, LaneState.ACTIVE)
    if logged:
        its = (lanes.c.slot == bindparam("of_slot")) & (lanes.c.barrier_time_us == bindparam("time_us"))
        lane = and_(its, lanes.c.generation == generation, lanes.c.state == LaneState.ACTIVE)
        times_us = {slot: barrier_times_us[slot] for slot in logged}
        names = [{"of_slot": slot, "time_us": time, "name": log_since(time)} for slot, time in times_us.items()]
        connection.execute(update(lanes).where(lane).values(log=bindparam("name")), names)


def left_here(connection: Connection, slot: int) -> list[Lane]:
    """The slot's lanes that were active here and have left: their rows stay until `finish` deletes them."""
    slot_lanes = read(connection, (slot,)).values()
    return [lane for lane in slot_lanes if lane.state == LaneState.LEFT and lane.barrier_time_us is not None]


def awaited_among(connection: Connection, met: Iterable[Met], generation: int) -> dict[int, int]:
    """By slot, when the barrier was published that this database awaits on its lane. Take the fence alone to rely on it."""
    met = list(met)
    opened = set(connection.scalars(select(rebalances.c.id).where(rebalances.c.state == RebalanceState.OPEN)))
    awaited = _awaited(connection, {barrier.slot for barrier in met}, generation)
    return {
        barrier.slot: barrier.time_us
        for barrier in met
        if (row := awaited.get(barrier.slot)) and row.rebalance in opened and row.token == barrier.token
    }


def leave(connection: Connection, met: Iterable[Met], generation: int) -> frozenset[int]:
    """These barriers were met in this generation: their slots leave it, with everything before the barriers committed.

    Returns the slots that left. One that stays in this database has its next lane due here, which becomes active in the same
    transaction, and goes on with its log for the way back. A barrier that isn't awaited changes nothing. Nor does a second copy,
    since its lane has left.
    """
    take_fence_alone(connection)
    times_us = awaited_among(connection, met, generation)
    query = select(lanes.c.slot).where(lanes.c.generation == generation, lanes.c.state == LaneState.ACTIVE)
    active_slots = set(connection.scalars(query.where(lanes.c.slot.in_(list(times_us)))))
    leaving = {slot: time_us for slot, time_us in times_us.items() if slot in active_slots}
    _move(connection, leaving, generation, LaneState.ACTIVE, LaneState.LEFT)
    _forget_barriers(connection, leaving, generation)
    due = connection.execute(
        select(lanes.c.slot, lanes.c.generation).where(lanes.c.state == LaneState.DUE, lanes.c.generation > generation)
    )
    staying: dict[int, dict[int, int]] = {}
    for slot, later in due:
        if slot in leaving:
            staying.setdefault(later, {})[slot] = leaving[slot]
    for later, times_us in staying.items():
        _move(connection, times_us, later, LaneState.DUE, LaneState.ACTIVE)
        _hand_on_logs(connection, times_us, generation, later)
    return frozenset(leaving)


def _hand_on_logs(connection: Connection, slots: Collection[int], before: int, after: int) -> None:
    """In the transaction in which a slot's next lane in the same database becomes active: that one goes on with the log."""
    its = and_(lanes.c.generation == before, lanes.c.slot.in_(list(slots)), lanes.c.log.startswith(_SINCE))
    for slot, log in connection.execute(select(lanes.c.slot, lanes.c.log).where(its)).all():
        for generation, name in ((after, log), (before, None)):
            lane = and_(lanes.c.slot == slot, lanes.c.generation == generation)
            connection.execute(update(lanes).where(lane).values(log=name))


def retire(connection: Connection) -> None:
    """Lanes that were announced and never came to it, once no subscription of theirs is left."""
    take_fence_alone(connection)
    connection.execute(update(lanes).where(lanes.c.state == LaneState.ARRIVING).values(state=LaneState.LEFT))


def forget(connection: Connection) -> int:
    """Drop the lanes that aren't active, once no subscription of theirs is left; how many there were."""
    take_fence_alone(connection)
    return connection.execute(delete(lanes).where(lanes.c.state != LaneState.ACTIVE)).rowcount


def _move(
    connection: Connection, times_us: Mapping[int, int | None], generation: int, before: LaneState, after: LaneState
) -> None:
    if not times_us:
        return
    lane = and_(lanes.c.slot == bindparam("of_slot"), lanes.c.generation == generation, lanes.c.state == before)
    change = update(lanes).where(lane).values(state=after, barrier_time_us=bindparam("time_us"))
    connection.execute(change, [{"of_slot": slot, "time_us": time_us} for slot, time_us in times_us.items()])


@dataclass(frozen=True, slots=True)
class _Awaited:
    rebalance: str
    token: str


def _awaited(connection: Connection, slots: Collection[int], generation: int) -> dict[int, _Awaited]:
    """The barriers that are awaited, by slot."""
    lane = and_(barriers.c.generation == generation, barriers.c.slot.in_(list(slots)))
    rows = connection.execute(select(barriers.c.slot, barriers.c.rebalance, barriers.c.token).where(lane))
    return {slot: _Awaited(rebalance, token) for slot, rebalance, token in rows}


def _forget_barriers(connection: Connection, slots: Collection[int], generation: int) -> None:
    connection.execute(delete(barriers).where(barriers.c.generation == generation, barriers.c.slot.in_(list(slots))))

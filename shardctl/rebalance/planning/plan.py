"""Which slots to move for what is asked: the fleet and a request in, the moves and the next fleet out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet import topology
from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Previous, Shard
from shardctl.rebalance.planning import byload, way_back
from shardctl.rebalance.planning.board import least_moved
from shardctl.rebalance.planning.reasons import why_not, why_nothing
from shardctl.rebalance.planning.request import Asked, Group, Request, asked, types_of
from shardctl.rebalance.planning.room import FilterRoom
from shardctl.rebalance.planning.solving import sets_after


class NoPlanError(ShardctlError):
    """The slots can't be moved as asked. Says why, and the nearest way."""


class NothingToMoveError(ShardctlError):
    """The fleet is as balanced as it was asked to be, or as moves that are worth it can make it."""


@dataclass(frozen=True, slots=True)
class Move:
    """Slots that leave one shard's database for another's."""

    slots: SlotSet
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Share:
    """A shard's part of its group before and after, None where it isn't there, and the part its weight asks for."""

    shard: str
    before: float | None
    after: float | None
    wanted: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`after` is the fleet while slots move: its changed shards have `previous`. `after.settled()` is how it ends.

    `minimum` is a count of slots that no plan stays under, even if filters had no limit. `inexact` names changed shards
    whose filters have no room for malformed slots, so that strays may miss some. `hot_slots` alone exceed the part of a
    shard of weight 1; they can't be shared out.
    """

    before: Fleet
    after: Fleet
    moves: tuple[Move, ...]
    shares: tuple[Share, ...]
    minimum: int
    inexact: tuple[str, ...] = ()
    hot_slots: tuple[int, ...] = ()

    @property
    def moved(self) -> int:
        return sum(len(move.slots) for move in self.moves)

    @property
    def changed(self) -> tuple[Shard, ...]:
        """The shards that get a new generation, or are new, or go."""
        known = {shard.name: shard for shard in self.before.shards}
        return tuple(shard for shard in self.after.shards if known.get(shard.name) != shard)


def plan(fleet: Fleet, request: Request) -> Plan:
    """The fewest moves found for what is asked: the same request on the same fleet gives the same plan.

    Of plans that move as many slots, one whose filters take malformed slots too. Raises UsageError for a request that
    can't be meant, NothingToMoveError and NoPlanError.
    """
    if request.back or request.forward:
        return _plan_turn(fleet, request)
    if request.slots is not None:
        raise UsageError("--slots says which slots go: give it with --back or --forward.")
    if fleet.rebalancing:
        raise UsageError(
            "a rebalance is open in this file: some shards have `previous`. `shardctl rebalance run` and then `finish` "
            "bring it to its end; `shardctl rebalance abort` and then `plan --back` lead back."
        )
    wanted = asked(fleet, request)
    sets = sets_after(fleet, wanted, request)
    if sets is None:
        raise NoPlanError(why_not(fleet, request))
    hot = tuple(slot for group in wanted.groups for slot in _hot_slots(wanted, group, request))
    moves = tuple(_moves(wanted.shards, sets))
    if not moves:
        raise NothingToMoveError(why_nothing(wanted, request, hot))
    after = fleet.model_copy(update={"shards": tuple(_next(wanted, sets))})
    shares = tuple(share for group in wanted.groups for share in _shares(wanted, group, request, sets))
    minimum = sum(_minimum(wanted, group, request) for group in wanted.groups)
    return Plan(fleet, after, moves, shares, minimum, tuple(_inexact(fleet, wanted, sets)), hot)


def _plan_turn(fleet: Fleet, request: Request) -> Plan:
    """Back, or forward again."""
    turn = Request(back=request.back, forward=not request.back, slots=request.slots, tolerance=0, min_gain=0)
    if replace(request, tolerance=0, min_gain=0) != turn:
        raise UsageError(
            "--back leads to the slots as they were, --forward to where the rebalance leads: each goes with no other change."
        )
    goal = way_back.Goal.BACK if request.back else way_back.Goal.FORWARD
    after = way_back.fleet_led(fleet, goal, request.slots)
    if after is None:
        raise NothingToMoveError(
            f"nothing to move: {'the' if request.slots is None else 'these'} slots are where the rebalance "
            f"{'began' if request.back else 'leads'} already."
        )
    if not _fits(after):
        raise NoPlanError(_why_no_turn(fleet, goal, request.slots))
    sets = {number: shard.slots for number, shard in enumerate(after.shards)}
    moves = tuple(_moves(fleet.shards, sets))
    whole = 1 << fleet.routing.slot_bits
    shares = tuple(
        Share(was.name, len(was.slots) / whole, len(will.slots) / whole, None)
        for was, will in zip(fleet.shards, after.shards, strict=True)
    )
    wanted = Asked(fleet.shards, tuple(Group((number,), ()) for number in sets))
    return Plan(
        fleet, after, moves, shares, sum(len(move.slots) for move in moves), tuple(_inexact(fleet, wanted, sets))
    )


def _fits(fleet: Fleet) -> bool:
    """Whether every filter of a transitional file is short enough."""
    changed = (shard for shard in fleet.shards if shard.previous is not None)
    subscriptions = (sub for shard in changed for sub in topology.subscriptions(fleet, shard))
    return all(len(sub.filter.encode()) <= MAX_FILTER_BYTES for sub in subscriptions)


def _why_no_turn(fleet: Fleet, goal: way_back.Goal, slots: SlotSet | None) -> str:
    """With the nearest slots that go: the runs' ends on ever coarser boundaries."""
    what = f"with these slots, a filter would take more than Pub/Sub's {MAX_FILTER_BYTES} bytes"
    for free in range(1, fleet.routing.slot_bits if slots is not None else 0):
        grain = (1 << free) - 1
        wider = SlotSet.of_ranges((first & ~grain, last | grain) for first, last in (slots or SlotSet()).ranges)
        after = way_back.fleet_led(fleet, goal, wider)
        if after is not None and _fits(after):
            return f"{what}. The nearest that fit: --slots {wider}."
    return f"{what}. Leave --slots out: then all go."


def _next(wanted: Asked, sets: Mapping[int, SlotSet]) -> Iterator[Shard]:
    """The shards of the next file: one whose slots change names the generation it had."""
    for number, shard in enumerate(wanted.shards):
        slots = sets.get(number, shard.slots)
        if shard.name in wanted.new:
            yield shard.model_copy(update={"slots": slots, "previous": ()})
        elif slots == shard.slots:
            yield shard
        else:
            before = Previous(generation=shard.generation, slots=shard.slots)
            yield shard.model_copy(update={"slots": slots, "generation": shard.generation + 1, "previous": (before,)})


def _moves(shards: Sequence[Shard], sets: Mapping[int, SlotSet]) -> Iterator[Move]:
    """By source and then destination, in the order of the file."""
    came = {number: gained for number in sets if (gained := sets[number] - shards[number].slots).ranges}
    for source in sets:
        left = shards[source].slots - sets[source]
        for destination, slots in came.items() if left.ranges else ():
            both = left & slots
            # Other types' shards may own the same slots: only a shard of the same group can have taken them.
            if both.ranges and types_of(shards[source]) == types_of(shards[destination]):
                yield Move(both, shards[source].name, shards[destination].name)


def _inexact(fleet: Fleet, wanted: Asked, sets: Mapping[int, SlotSet]) -> Iterator[str]:
    for group in wanted.groups:
        room = FilterRoom(fleet, wanted.shards[group.shards[0]])
        for number in group.shards:
            if sets[number] != wanted.shards[number].slots and room.padded(sets[number]) > MAX_FILTER_BYTES:
                yield wanted.shards[number].name


def _shares(wanted: Asked, group: Group, request: Request, sets: Mapping[int, SlotSet]) -> Iterator[Share]:
    whole = sum(quota.have for quota in group.quotas) or 1.0
    for number, quota in zip(group.shards, group.quotas, strict=True):
        name = wanted.shards[number].name
        gone = name in request.remove
        yield Share(
            name,
            None if name in wanted.new else quota.have / whole,
            None if gone else request.share_of(sets[number]) / whole,
            None if gone else quota.fair / whole,
        )


def _minimum(wanted: Asked, group: Group, request: Request) -> int:
    if request.rates is None:
        return least_moved(group.quotas)
    return byload.least_moved([wanted.shards[number].slots for number in group.shards], group.quotas, request.rates)


def _hot_slots(wanted: Asked, group: Group, request: Request) -> Sequence[int]:
    if request.rates is None:
        return ()
    fair = sum(quota.have for quota in group.quotas) / sum(quota.fair > 0 for quota in group.quotas)
    owned = (slot for number in group.shards for slot in wanted.shards[number].slots)
    return [slot for slot in owned if request.rates.get(slot, 0.0) > fair]

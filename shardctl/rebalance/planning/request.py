"""What a rebalance is asked for, checked, and turned into a quota for each shard. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.scalars import ShortName
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.planning.quotas import Quota, bounds, drained, fair_parts, filled

TOLERANCE = 0.05
MIN_GAIN = 0.02
MAX_WEIGHT = 1e6
_NAME: TypeAdapter[str] = TypeAdapter(ShortName)

Types = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Request:
    """One of `add`, `remove`, `split`, `back` and `forward`, or none of them to level the shards there are.

    A share is a count of slots or, where `rates` holds a number for each slot, a sum of rates; a slot that `rates`
    leaves out has none. Shares go by weight: 1 for shards that `weights` doesn't name. `tolerance` is the part of its
    target by which a share may miss it. `min_gain` is the part of a peak that a move must take off it, where shares are
    sums of rates. `into` names the new half of a split. `like` names the shard whose message types added ones take.
    `slots` are those that go `back` or `forward`; None for all.
    """

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    split: str = ""
    into: str = ""
    like: str = ""
    back: bool = False
    forward: bool = False
    slots: SlotSet | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[int, float] | None = None
    tolerance: float = TOLERANCE
    min_gain: float = MIN_GAIN

    def share_of(self, slots: SlotSet) -> float:
        return len(slots) if self.rates is None else math.fsum(self.rates.get(slot, 0.0) for slot in slots)


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that take the same message types: slots move only among them. `shards` are numbers in `Asked.shards`."""

    shards: tuple[int, ...]
    quotas: tuple[Quota, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """The shards of the fleet and then the new ones, without slots; the groups that are to change."""

    shards: tuple[Shard, ...]
    groups: tuple[Group, ...]
    new: tuple[str, ...] = ()


def asked(fleet: Fleet, request: Request) -> Asked:
    """Read a request. Raises UsageError where it can't be meant."""
    _check_shape(request)
    _check_numbers(fleet, request)
    for name in request.remove:
        fleet.shard(name)
    shards, new = fleet.shards, request.add
    if request.split:
        model = fleet.shard(request.split)
        new = (request.into or _free_name(fleet, request.split),)
    elif new:
        model = _model(fleet, request)
    for name in new:
        shards = (*shards, _new_shard(fleet, shards, name, model))
    _check_weights(shards, request)
    return Asked(shards, tuple(_groups(shards, new, request)), new)


def types_of(shard: Shard) -> Types:
    return frozenset(shard.types), frozenset(shard.except_types)


def _groups(shards: Sequence[Shard], new: Sequence[str], request: Request) -> Iterator[Group]:
    by_types: dict[Types, list[int]] = {}
    for number, shard in enumerate(shards):
        by_types.setdefault(types_of(shard), []).append(number)
    touched = {*new, *request.remove}
    for numbers in by_types.values():
        if touched and not any(shards[number].name in touched for number in numbers):
            continue
        members = [number for number in numbers if not request.split or shards[number].name in (*new, request.split)]
        yield _group(shards, members, new, request)


def _group(shards: Sequence[Shard], members: list[int], new: Sequence[str], request: Request) -> Group:
    names = [shards[number].name for number in members]
    have = [request.share_of(shards[number].slots) for number in members]
    weights = [0.0 if name in request.remove else request.weights.get(name, 1.0) for name in names]
    slots, staying = sum(len(shards[number].slots) for number in members), sum(weight > 0 for weight in weights)
    if not staying:
        raise UsageError(
            f"{', '.join(request.remove)} can't go: no other shard takes the same message types. "
            f"Add one first, with --add NAME --like {request.remove[0]}."
        )
    if staying > slots:
        raise UsageError(f"{slots} slots can't be shared out to {staying} shards: each needs one.")
    fair = fair_parts(have, weights)
    old = [number for number, name in enumerate(names) if name not in (*new, *request.remove)]
    moving = sum(fair[number] if names[number] in new else have[number] for number in set(range(len(names))) - set(old))
    levelled = drained if new else filled
    targets = dict(
        zip(old, levelled([have[at] for at in old], [weights[at] for at in old], moving), strict=True)
        if new or request.remove
        else enumerate(fair)
    )
    quotas = (
        _quota(name, have[at], fair[at], targets.get(at, fair[at]), new=new, request=request)
        for at, name in enumerate(names)
    )
    return Group(tuple(members), tuple(quotas))


def _quota(name: str, have: float, fair: float, target: float, *, new: Sequence[str], request: Request) -> Quota:
    """From the fair part to `target`, which lies beyond it where shards may only give or only take."""
    if name in request.remove:
        return Quota(have, 0, 0, 0, takes=False)
    counts = request.rates is None
    (low, _), (_, high) = (bounds(share, request.tolerance, whole=counts) for share in sorted((fair, target)))
    low = max(low, 1 if counts else 0)
    high = max(low, high)
    if request.remove:  # who holds more than its share keeps it
        return Quota(have, fair, low, max(high, have), gives=False)
    if new:  # who holds less than its share keeps that
        is_new = name in new
        return Quota(have, fair, low if is_new else min(low, have), high, gives=not is_new, takes=is_new)
    return Quota(have, fair, low, high)


def _model(fleet: Fleet, request: Request) -> Shard:
    if request.like:
        return fleet.shard(request.like)
    kinds = {types_of(shard): shard for shard in reversed(fleet.shards)}
    if len(kinds) > 1:
        raise UsageError(
            "shards take different message types here, and slots move only among those that take the same. "
            f"Say whose types {request.add[0]} takes with --like: {', '.join(sorted(s.name for s in kinds.values()))}."
        )
    return fleet.shards[0]


def _new_shard(fleet: Fleet, shards: Sequence[Shard], name: str, model: Shard) -> Shard:
    """See `Fleet.new_shard`. Raises UsageError for a name that can't be given, or that one of `shards` has."""
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        raise UsageError(f"{error.errors()[0]['ctx']['error']}.") from error
    if name in {shard.name for shard in shards}:
        raise UsageError(f"shard {name} is there already. Name the new one otherwise.")
    return fleet.new_shard(name, model)


def _free_name(fleet: Fleet, name: str) -> str:
    """A name for the new half of a shard: the next number where names end in one, else `name-2` and so on."""
    names = {shard.name for shard in fleet.shards}
    match = re.fullmatch(r"(.*?)([0-9]+)", name)
    stem, number = (match[1], int(match[2])) if match else (f"{name}-", 1)
    number += 1
    while f"{stem}{number}" in names:
        number += 1
    return f"{stem}{number}"


def _check_shape(request: Request) -> None:
    if sum(map(bool, (request.add, request.remove, request.split))) > 1:
        raise UsageError("add, remove and split are changes of their own: plan one, run it, then the next.")
    if request.like and not request.add:
        raise UsageError("--like says which message types an added shard takes; give it with --add.")
    if request.into and not request.split:
        raise UsageError("--into names the new half of a shard; give it with --split.")
    for name in set(request.weights) & set(request.remove):
        raise UsageError(f"{name} is to go, so it has no weight.")


def _check_numbers(fleet: Fleet, request: Request) -> None:
    if not 0 <= request.tolerance < 1:
        raise UsageError(f"the tolerance {request.tolerance:g} isn't a part of a share: 0% or more, and below 100%.")
    if not 0 <= request.min_gain < 1:
        raise UsageError(f"the gain {request.min_gain:g} isn't a part of a peak: 0% or more, and below 100%.")
    for slot, rate in (request.rates or {}).items():
        if not 0 <= slot < 1 << fleet.routing.slot_bits:
            raise UsageError(f"a rate was given for slot {slot}, which doesn't exist.")
        if not (math.isfinite(rate) and rate >= 0):
            raise UsageError(f"the rate of slot {slot} is {rate:g}. Rates are 0 or more.")
    if request.rates is not None and not any(request.rates.values()):
        raise UsageError("every rate is 0, so there is no load to share out. Measure again, or plan by count.")


def _check_weights(shards: Sequence[Shard], request: Request) -> None:
    names = {shard.name for shard in shards}
    for name, weight in request.weights.items():
        if name not in names:
            raise UsageError(f"no shard {name!r} to weigh; shards: {', '.join(shard.name for shard in shards)}.")
        if not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise UsageError(
                f"the weight of {name} is {weight:g}. Weights are over 0, from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}; --remove "
                "takes a shard away."
            )

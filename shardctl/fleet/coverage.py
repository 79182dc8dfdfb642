"""The proof that each message goes to exactly one shard, by brute force over slots and types. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from shardctl.fleet import (
    backends,
    cloudsql,
    credentials,
    gateways,
    monitoring,
    operators,
    residency,
    schedules,
    tables,
)
from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Shard
from shardctl.fleet.spec_errors import Fault
from shardctl.fleet.suggestion import suggestion
from shardctl.fleet.topology import (
    every_subscription,
    inbox_retention,
    known_types,
    redelivery_reach,
    strays,
    subscriptions,
    takes_every_type,
)

OTHER_TYPES = "(any other)"  # stands for every type the file doesn't name, and for a message without one


@dataclass(frozen=True, slots=True)
class Proof:
    """`pairs` (slot, type) pairs were checked and each has exactly one shard; a type in `unrouted` goes to strays."""

    slots: int
    types: tuple[str, ...]
    pairs: int
    unrouted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Finding:
    """Slots that no shard owns (`first` is None), or that shards number `first` and `second` both own."""

    slots: SlotSet
    first: int | None = None
    second: int = 0


def prove(fleet: Fleet) -> tuple[Proof, tuple[Fault, ...]]:
    """Find the owner of each (slot, type) pair, and the pairs that have none or two."""
    types = (*known_types(fleet), OTHER_TYPES)
    unrouted = () if takes_every_type(fleet) else (OTHER_TYPES,)
    of_shards: dict[tuple[int, ...], tuple[_Finding, ...]] = {}  # most types are taken by the same shards
    at_fault: dict[_Finding, list[str]] = {}
    for message_type in types:
        if message_type in unrouted:
            continue
        takers = tuple(number for number, shard in enumerate(fleet.shards) if shard.takes(message_type))
        if takers not in of_shards:
            of_shards[takers] = tuple(_findings(fleet, takers))
        for finding in of_shards[takers]:
            at_fault.setdefault(finding, []).append(message_type)
    slot_count = 1 << fleet.routing.slot_bits
    return (
        Proof(slot_count, types, slot_count * (len(types) - len(unrouted)), unrouted),
        tuple(_fault(fleet, finding, at, len(types) - len(unrouted)) for finding, at in at_fault.items()),
    )


def _findings(fleet: Fleet, takers: tuple[int, ...]) -> Iterator[_Finding]:
    """What is wrong with the slots of messages that just these shards take."""
    slot_count = 1 << fleet.routing.slot_bits
    owner = [-1] * slot_count
    clashes: dict[tuple[int, int], list[int]] = {}
    for number in takers:
        for slot in fleet.shards[number].slots:
            if owner[slot] >= 0:
                clashes.setdefault((owner[slot], number), []).append(slot)
            owner[slot] = number
    for (first, second), slots in clashes.items():
        yield _Finding(SlotSet.of(slots), first, second)
    free = SlotSet.of(slot for slot in range(slot_count) if owner[slot] < 0)
    if free.ranges:
        yield _Finding(free)


def _fault(fleet: Fleet, finding: _Finding, types: list[str], type_count: int) -> Fault:
    named = [name for name in types if name != OTHER_TYPES]
    every = OTHER_TYPES in types or len(types) == type_count
    what = f"slots {finding.slots}" + ("" if every else f" of type {' and '.join(map(repr, named))}")
    if finding.first is None:
        return Fault(("shards",), f"no shard owns {what}; their messages would be lost.", "add them to a shard.")
    first, second = fleet.shards[finding.first], fleet.shards[finding.second]
    fix = f"give {what} to one of the two."
    if second.types and not first.types:
        fix = f"add except_types: [{', '.join(named)}] to {first.name}."
    elif first.types and not second.types:
        fix = f"add except_types: [{', '.join(named)}] to {second.name}."
    return Fault(("shards", finding.second, "slots"), f"{what} also belong to shard {first.name!r}.", fix)


def faults(fleet: Fleet) -> tuple[Fault, ...]:
    """All faults of a fleet that concern more than one field. Empty means that it can be rendered and run."""
    problems = [
        *_bad_names(fleet),
        *_bad_slots(fleet),
        *tables.faults(fleet),
        *_bad_settings(fleet),
        *_bad_emits(fleet),
        *_bad_delivery(fleet),
        *_bad_clients(fleet),
        *_bad_redis(fleet),
        *schedules.faults(fleet),
        *backends.faults(fleet),
        *credentials.faults(fleet),
        *cloudsql.faults(fleet),
        *monitoring.faults(fleet),
        *residency.faults(fleet),
        *operators.faults(fleet),
        *gateways.faults(fleet),
    ]
    if not problems:
        problems += prove(fleet)[1]
    if not problems:
        problems += _long_filters(fleet)
    return tuple(problems)


def _bad_names(fleet: Fleet) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for number, shard in enumerate(fleet.shards):
        if shard.name in seen:
            yield Fault(
                ("shards", number, "name"),
                f"{shard.name!r} is also the name of shards[{seen[shard.name]}].",
                "name each shard once.",
            )
        seen.setdefault(shard.name, number)
    if fleet.fleet.startswith("goog"):
        yield Fault(("fleet",), "Pub/Sub refuses names that begin with 'goog'.", "rename the fleet.")


def _bad_clients(fleet: Fleet) -> Iterator[Fault]:
    for name, client in fleet.gateway.auth.clients.items() if fleet.gateway else ():
        if unknown := [kind for kind in client.types if kind not in fleet.message_types]:
            yield Fault(
                ("gateway", "auth", "clients", name, "types"),
                f"there is no message type {', '.join(unknown)}.",
                f"the types are {', '.join(fleet.message_types)}.",
            )


def _bad_slots(fleet: Fleet) -> Iterator[Fault]:
    last = (1 << fleet.routing.slot_bits) - 1
    for number, shard in enumerate(fleet.shards):
        sets: dict[tuple[str | int, ...], SlotSet] = {("slots",): shard.slots}
        sets |= {("previous", at, "slots"): before.slots for at, before in enumerate(shard.previous or ())}
        if not any(slots.ranges for slots in sets.values()):
            yield Fault(("shards", number, "slots"), "owns no slots.", "give it some, or remove the shard.")
        for place, slots in sets.items():
            if slots.ranges and slots.ranges[-1][1] > last:
                yield Fault(
                    ("shards", number, *place),
                    f"slot {slots.ranges[-1][1]} doesn't exist.",
                    f"slots run from 0 to {last} (slot_bits: {fleet.routing.slot_bits}).",
                )


def _bad_settings(fleet: Fleet) -> Iterator[Fault]:
    reach = redelivery_reach(fleet)
    days = -(-reach // timedelta(days=1))
    for number, shard in enumerate(fleet.shards):
        if inbox_retention(fleet, shard) < reach:
            own = shard.consumer != fleet.consumer
            yield Fault(
                (*(("shards", number) if own else ()), "consumer", "inbox_retention"),
                f"a message can come again for {days}d (the subscription's retention, and a day for retries), and one that the "
                "inbox forgets sooner would be applied twice.",
                f"leave it out, or make it {days}d or more.",
            )
        for name in (*shard.types, *shard.except_types):
            if name not in fleet.message_types:
                yield Fault(
                    ("shards", number, "types" if shard.types else "except_types"),
                    f"{name!r} isn't among message_types.{suggestion(name, fleet.message_types)}",
                    f"declare it, or use one of: {', '.join(fleet.message_types)}.",
                )


def _bad_emits(fleet: Fleet) -> Iterator[Fault]:
    for name, kind in fleet.message_types.items():
        for emitted in kind.emits:
            if emitted not in fleet.message_types:
                yield Fault(
                    ("message_types", name, "emits"),
                    f"{emitted!r} isn't among message_types.{suggestion(emitted, fleet.message_types)}",
                    f"declare it, or use one of: {', '.join(fleet.message_types)}.",
                )


def _bad_delivery(fleet: Fleet) -> Iterator[Fault]:
    if fleet.delivery.kind != "push":
        return
    for number, shard in enumerate(fleet.shards):
        if shard.leader.kind != "none":
            own = shard.leader != fleet.leader
            yield Fault(
                (*(("shards", number) if own else ()), "leader"),
                "a push reaches any replica, and a standby could only refuse it.",
                "use `delivery: pull` where one replica leads.",
            )
            return


def _bad_redis(fleet: Fleet) -> Iterator[Fault]:
    if fleet.redis.memorystore and fleet.provisioner == "api":
        yield Fault(
            ("redis", "memorystore"),
            "`provisioner: api` makes topics and subscriptions alone.",
            "choose config-connector, terraform or gcloud, or make the instance yourself and leave `memorystore` out.",
        )


def _long_filters(fleet: Fleet) -> Iterator[Fault]:
    for number, shard in enumerate(fleet.shards):
        longest = max(every_subscription(fleet, shard), key=lambda sub: len(sub.filter.encode()))
        size = len(longest.filter.encode())
        if size > MAX_FILTER_BYTES:
            fits = nearest_that_fits(fleet, shard)
            yield Fault(
                ("shards", number, "slots"),
                f"the filter of subscription {longest.id} takes {size} bytes, and Pub/Sub allows {MAX_FILTER_BYTES}.",
                f"the nearest slots that fit: {fits}." if fits else "name fewer message types.",
            )
    for stray in strays(fleet):
        size = len(stray.filter.encode())
        if size > MAX_FILTER_BYTES:
            yield Fault(
                ("shards",),
                f"the strays filter takes {size} bytes, since no shard takes types the file doesn't name.",
                "let one shard use except_types, or none.",
            )
            return  # each topic's is as long


def nearest_that_fits(fleet: Fleet, shard: Shard) -> SlotSet | None:
    """The slots nearest to the shard's whose filters fit: its ranges' ends on ever coarser boundaries until they do.

    None where no slots help. The shards beside it must be moved to the same boundaries.
    """
    for free in range(1, fleet.routing.slot_bits + 1):
        grain = 1 << free
        ends = ((_round(first, grain), _round(last + 1, grain)) for first, last in shard.slots.ranges)
        rounded = SlotSet.of_ranges((first, last - 1) for first, last in ends if first < last)
        if rounded.ranges:
            candidate = shard.model_copy(update={"slots": rounded})
            if all(len(sub.filter.encode()) <= MAX_FILTER_BYTES for sub in subscriptions(fleet, candidate)):
                return rounded
    return None


def _round(value: int, grain: int) -> int:
    return (value + grain // 2) // grain * grain

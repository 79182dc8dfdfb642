"""The proof that each message goes to exactly one shard, by brute force over slots and types. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardctl.filters import MAX_FILTER_BYTES
from shardctl.keyspace import SlotSet
from shardctl.spec import Fault, Fleet, Shard
from shardctl.topology import known_types, shard_id, strays, subscriptions, takes_every_type

OTHER_TYPES = "(any other)"  # stands for every type the file doesn't name, and for a message without one


@dataclass(frozen=True, slots=True)
class Proof:
    """`pairs` (slot, type) pairs were checked and each has exactly one shard; a type in `unrouted` goes to strays."""

    slots: int
    types: tuple[str, ...]
    pairs: int
    unrouted: tuple[str, ...]


def prove(fleet: Fleet) -> tuple[Proof, tuple[Fault, ...]]:
    """Find the owner of each (slot, type) pair, and the pairs that have none or two."""
    slot_count = 1 << fleet.routing.slot_bits
    types = (*known_types(fleet), OTHER_TYPES)
    unrouted, found = [], []
    for message_type in types:
        owner = [-1] * slot_count
        clashes: dict[tuple[int, int], list[int]] = {}
        for number, shard in enumerate(fleet.shards):
            if takes(shard, message_type):
                for slot in shard.slots:
                    if slot >= slot_count:
                        break  # reported by faults()
                    if owner[slot] >= 0:
                        clashes.setdefault((owner[slot], number), []).append(slot)
                    owner[slot] = number
        free = SlotSet.of(slot for slot in range(slot_count) if owner[slot] < 0)
        for (first, second), slots in clashes.items():
            found.append(_clash(fleet, first, second, SlotSet.of(slots), message_type))
        if message_type == OTHER_TYPES and not takes_every_type(fleet):
            unrouted.append(message_type)
        elif free.ranges:
            found.append(_gap(fleet, free, message_type))
    return Proof(slot_count, types, slot_count * len(types), tuple(unrouted)), _without_repeats(found)


def takes(shard: Shard, message_type: str) -> bool:
    return message_type in shard.types if shard.types else message_type not in shard.except_types


def faults(fleet: Fleet) -> tuple[Fault, ...]:
    """Everything wrong with a fleet that only shows across fields. Empty means that it can be rendered and run."""
    found = [*_bad_names(fleet), *_bad_slots(fleet), *_bad_settings(fleet)]
    if not found:
        found += prove(fleet)[1]
    if not found:
        found += _long_filters(fleet)
    return tuple(found)


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
        if shard_id(fleet, shard).startswith("goog"):
            yield Fault(("fleet",), "Pub/Sub refuses names that begin with 'goog'.", "rename the fleet.")


def _bad_slots(fleet: Fleet) -> Iterator[Fault]:
    last = (1 << fleet.routing.slot_bits) - 1
    for number, shard in enumerate(fleet.shards):
        if not shard.slots.ranges:
            yield Fault(("shards", number, "slots"), "owns no slots.", "give it some, or remove the shard.")
        elif shard.slots.ranges[-1][1] > last:
            yield Fault(
                ("shards", number, "slots"),
                f"slot {shard.slots.ranges[-1][1]} doesn't exist.",
                f"slots run from 0 to {last} (slot_bits: {fleet.routing.slot_bits}).",
            )


def _bad_settings(fleet: Fleet) -> Iterator[Fault]:
    tables: dict[str, str] = {}
    for name, kind in fleet.message_types.items():
        first = fleet.message_types[tables.setdefault(kind.table.lower(), name)]
        if (kind.key, kind.columns, kind.slot_column) != (first.key, first.columns, first.slot_column):
            yield Fault(
                ("message_types", name, "table"),
                f"{kind.table!r} is described otherwise by type {tables[kind.table.lower()]!r}.",
                "give both the same key, columns and slot_column.",
            )
    for number, shard in enumerate(fleet.shards):
        for name in (*shard.types, *shard.except_types):
            if name not in fleet.message_types:
                yield Fault(
                    ("shards", number, "types" if shard.types else "except_types"),
                    f"{name!r} isn't among message_types.",
                    f"declare it, or use one of: {', '.join(fleet.message_types)}.",
                )


def _long_filters(fleet: Fleet) -> Iterator[Fault]:
    for number, shard in enumerate(fleet.shards):
        for sub in subscriptions(fleet, shard):
            size = len(sub.filter.encode())
            if size > MAX_FILTER_BYTES:
                fits = nearest_that_fits(fleet, shard, sub.slots)
                way = f"the nearest slots that fit: {fits}." if fits else "name fewer message types."
                yield Fault(
                    ("shards", number, "slots"),
                    f"the filter of subscription {sub.id} takes {size} bytes, and Pub/Sub allows {MAX_FILTER_BYTES}.",
                    way,
                )
    for stray in strays(fleet):
        size = len(stray.filter.encode())
        if size > MAX_FILTER_BYTES:
            yield Fault(
                ("shards",),
                f"the strays filter takes {size} bytes, since no shard takes types the file doesn't name.",
                "let one shard use except_types, or none.",
            )


def nearest_that_fits(fleet: Fleet, shard: Shard, slots: SlotSet) -> SlotSet | None:
    """The slots nearest to `slots` whose filter fits: each range's ends moved to ever coarser boundaries until it does."""
    for free in range(1, fleet.routing.slot_bits + 1):
        grain = 1 << free
        rounded = SlotSet.of_ranges(
            (first, last - 1)
            for first, last in ((_round(first, grain), _round(last + 1, grain)) for first, last in slots.ranges)
            if first < last
        )
        if rounded.ranges:
            candidate = shard.model_copy(update={"slots": rounded})
            if all(len(sub.filter.encode()) <= MAX_FILTER_BYTES for sub in subscriptions(fleet, candidate)):
                return rounded
    return None


def _round(value: int, grain: int) -> int:
    return (value + grain // 2) // grain * grain


def _clash(fleet: Fleet, first: int, second: int, slots: SlotSet, message_type: str) -> Fault:
    what = f"slots {slots}" + ("" if message_type == OTHER_TYPES else f" of type {message_type!r}")
    fix = (
        f"give {what} to one of the two."
        if not fleet.shards[second].types
        else f"add except_types: [{message_type}] to {fleet.shards[first].name}."
    )
    return Fault(("shards", second, "slots"), f"{what} also belong to shard {fleet.shards[first].name!r}.", fix)


def _gap(fleet: Fleet, slots: SlotSet, message_type: str) -> Fault:
    what = f"slots {slots}" + ("" if message_type == OTHER_TYPES else f" of type {message_type!r}")
    return Fault(("shards",), f"no shard owns {what}; their messages would be lost.", "add them to a shard.")


def _without_repeats(found: list[Fault]) -> tuple[Fault, ...]:
    """The same slots at fault for every type are told once, without the type."""
    plain = {(fault.path, fault.fault) for fault in found if " of type " not in fault.fault}
    return tuple(
        fault for fault in found if " of type " not in fault.fault or (fault.path, _untyped(fault.fault)) not in plain
    )


def _untyped(text: str) -> str:
    head, _, rest = text.partition(" of type '")
    return head + rest.partition("'")[2]

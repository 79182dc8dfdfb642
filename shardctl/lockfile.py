"""What was deployed last, in `shards.lock` beside `shards.yaml`, and whether the file may follow it. Queries no service.

A subscription's filter can't be changed, and a slot's rows don't move by themselves. So an edit by hand that changes who owns
what would lose messages or write rows in two places; the lock finds it before anything is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from shardctl import atomicfile
from shardctl.atomicfile import FileError
from shardctl.errors import UsageError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Slots
from shardctl.fleet.spec import Fleet, Shard

MAX_TOLD = 10


class GuardError(UsageError):
    """The file contradicts what is deployed. Nothing was done."""


class LockedGeneration(Model):
    generation: int
    slots: Slots


class LockedShard(Model):
    name: str
    types: tuple[str, ...] = Field((), strict=False)
    except_types: tuple[str, ...] = Field((), strict=False)
    generations: tuple[LockedGeneration, ...] = Field(strict=False)

    def takes(self, message_type: str) -> bool:
        return message_type in self.types if self.types else message_type not in self.except_types


class Lockfile(Model):
    """Everything that subscriptions and slots depend on. Only `shardctl provision` and `shardctl rebalance` change it."""

    fleet: str
    topic: str
    slot_bits: int
    topic_bits: int
    attributes: dict[str, str]
    shards: tuple[LockedShard, ...] = Field(strict=False)


def lock_of(fleet: Fleet) -> Lockfile:
    return Lockfile(
        fleet=fleet.fleet,
        topic=fleet.topic.name,
        slot_bits=fleet.routing.slot_bits,
        topic_bits=fleet.routing.topic_bits,
        attributes=fleet.routing.attributes.model_dump(),
        shards=tuple(
            LockedShard(
                name=shard.name,
                types=shard.types,
                except_types=shard.except_types,
                generations=tuple(
                    LockedGeneration(generation=version.generation, slots=version.slots)
                    for version in topology.generations(shard)
                ),
            )
            for shard in fleet.shards
        ),
    )


def path_of(file: Path) -> Path:
    """`shards.lock` of `shards.yaml`."""
    return file.with_suffix(".lock")


def read(file: Path) -> Lockfile | None:
    """The lock beside a file; None where there is none: nothing was deployed from here. Raises GuardError."""
    path = path_of(file)
    try:
        return Lockfile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise GuardError(
            f"{path}: can't be read as a lock: {str(error).partition(chr(10))[0]}. Restore it from version control, or delete "
            "it and let `shardctl provision` write it again, from the file that was last deployed."
        ) from error


def write(file: Path, fleet: Fleet) -> None:
    """Raises GuardError."""
    text = json.dumps(lock_of(fleet).model_dump(mode="json", exclude_defaults=True), indent=2)
    path = path_of(file)
    try:
        atomicfile.write(path, f"{text}\n".encode())
    except FileError as error:
        raise GuardError(
            f"{path}: can't be written: {error.reason}. The next command can't know what is deployed."
        ) from error


def check(file: Path, fleet: Fleet) -> None:
    """Raise GuardError where the file can't follow what is deployed."""
    lock = read(file)
    faults = list(contradictions(lock, fleet)) if lock else []
    if faults:
        more = [f"… and {len(faults) - MAX_TOLD} more."] if len(faults) > MAX_TOLD else []
        raise GuardError(
            "\n".join(f"{file}: {fault}" for fault in (*faults[:MAX_TOLD], *more))
            + f"\n{path_of(file)} records what was deployed. If nothing ever was, delete it."
        )


def contradictions(lock: Lockfile, fleet: Fleet) -> Iterator[str]:
    """Why the file can't follow what the lock records, each with the safe way. Pure."""
    new = lock_of(fleet)
    # A part of a message that the lock lacks was added by this version.
    lock = lock.model_copy(update={"attributes": {**new.attributes, **lock.attributes}})
    for name in ("fleet", "topic", "slot_bits", "topic_bits", "attributes"):
        if getattr(lock, name) != getattr(new, name):
            yield (
                f"{name} was {_text(getattr(lock, name))} and is {_text(getattr(new, name))}, which is fixed for a fleet's life: "
                "subscriptions, producers and rows all depend on it. Undo the edit, or begin a new fleet."
            )
            return  # all other contradictions would follow from it
    shards = {shard.name: shard for shard in fleet.shards}
    for before in lock.shards:
        if before.name not in shards:
            yield (
                f"shard {before.name} is gone, though its subscription may hold messages and its database rows. Put it back; "
                f"`shardctl rebalance plan --remove {before.name}` removes it safely."
            )
        else:
            yield from _changed(before, shards[before.name])
    known = {before.name for before in lock.shards}
    for shard in fleet.shards:
        if shard.name not in known and shard.previous is None:
            yield from _taken(lock, fleet, shard)


def _changed(before: LockedShard, shard: Shard) -> Iterator[str]:
    if (before.types, before.except_types) != (shard.types, shard.except_types):
        yield (
            f"the message types of shard {shard.name} have changed, and with them its subscription's filter, which Pub/Sub can't "
            "change in place. Undo the edit; new types can go to a shard of their own."
        )
        return
    now = {version.generation: version.slots for version in topology.generations(shard)}
    for locked in before.generations:
        if locked.generation not in now:
            yield (
                f"generation {locked.generation} of shard {shard.name} is gone, though its subscription may hold messages and "
                "its slots may be active. Undo the edit: only `shardctl rebalance finish` removes a generation, and only "
                "`shardctl rebalance plan` gives a new one."
            )
        elif now[locked.generation] != locked.slots:
            yield (
                f"the slots of shard {shard.name}, generation {locked.generation}, were {locked.slots} and are "
                f"{now[locked.generation]}: their rows would stay behind, and Pub/Sub can't change the filter. Undo the edit; "
                "`shardctl rebalance plan` moves slots safely."
            )
    newest = max((locked.generation for locked in before.generations), default=0)
    for generation in now:
        if generation < newest and generation not in {locked.generation for locked in before.generations}:
            yield (
                f"generation {generation} of shard {shard.name} is no longer deployed. `shardctl rebalance finish` writes the "
                "file without it; or restore the settled file from version control."
            )


def _taken(lock: Lockfile, fleet: Fleet, shard: Shard) -> Iterator[str]:
    """A new shard that isn't part of a rebalance would hold its slots active from the start."""
    for other in lock.shards:
        locked_slots = SlotSet.of_ranges(
            slot_range for locked in other.generations for slot_range in locked.slots.ranges
        )
        common = shard.slots & locked_slots
        if common.ranges and any(shard.takes(name) and other.takes(name) for name in fleet.message_types):
            yield (
                f"the new shard {shard.name} takes slots {common} of shard {other.name}, whose rows would stay behind. Undo the "
                f"edit; `shardctl rebalance plan --add {shard.name}` moves slots safely."
            )


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else repr(value)

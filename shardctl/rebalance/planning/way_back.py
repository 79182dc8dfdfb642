"""The way back from a rebalance that isn't finished, and forward again: of all slots, or of some. Pure.

A rebalance gives its shards a new generation, and each way back or forward gives all of them one more. So the present generation
and `previous` tell which slots a shard had in each state: 0 is where the rebalance began, 1 where it leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import Any

from shardctl.errors import UsageError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Previous, Shard
from shardctl.rebalance.planning.request import types_of


class Goal(IntEnum):
    """The state that slots are led to."""

    BACK = 0
    FORWARD = 1


@dataclass(frozen=True, slots=True)
class Course:
    """The slots of each changed shard in every state, the present one last. All have as many states."""

    states: Mapping[str, tuple[SlotSet, ...]]

    @property
    def turned(self) -> bool:
        """Whether a way back has been planned since it began."""
        return any(len(states) > 2 for states in self.states.values())

    @property
    def moving(self) -> SlotSet:
        """The slots that change their shard between where the rebalance began and where it leads."""
        sets = ((states[Goal.FORWARD], states[Goal.BACK]) for states in self.states.values())
        return reduce(or_, (there - here for there, here in sets), SlotSet())

    def led(self, goal: Goal, slots: SlotSet | None = None) -> dict[str, SlotSet]:
        """Each shard's slots once these, or all, are where they are to be. The others stay."""
        return {
            name: states[goal] if slots is None else (states[-1] - slots) | (states[goal] & slots)
            for name, states in self.states.items()
        }

    def is_at(self, goal: Goal, slots: SlotSet | None = None) -> bool:
        return all(self.states[name][-1] == wanted for name, wanted in self.led(goal, slots).items())


def course_of(fleet: Fleet) -> Course:
    """Of a transitional file."""
    return _course(
        (shard.name, shard.generation, shard.slots, {former.generation: former.slots for former in shard.previous})
        for shard in fleet.shards
        if shard.previous is not None
    )


def course_of_journal(change: Mapping[str, Any]) -> Course:
    """Of what `journal.describe` gave."""
    return _course(
        (
            shard["name"],
            shard["generation"],
            _slots(shard["slots"]),
            {former["generation"]: _slots(former["slots"]) for former in shard["previous"]},
        )
        for shard in change["shards"]
    )


def check_slots(fleet: Fleet, slots: SlotSet) -> None:
    """Raise UsageError where a way back or forward of these slots of a transitional file means nothing.

    Slots that never move are always where a way back leads. Asked for by themselves, they would be taken for a way back that has
    arrived, and what comes after that is `finish`.
    """
    if (beyond := slots - SlotSet.all(fleet.routing.slot_bits)).ranges:
        raise UsageError(f"--slots: there are no slots {beyond} in this fleet.")
    moving = course_of(fleet).moving
    if not (slots & moving).ranges:
        raise UsageError(f"--slots: this rebalance doesn't move {slots}. It moves {moving}.")


def fleet_led(fleet: Fleet, goal: Goal = Goal.BACK, slots: SlotSet | None = None) -> Fleet | None:
    """Each changed shard with the slots that it had at the goal, under a new generation; None where it has them already.

    The generations on the way stay in `previous`, since any of them may hold slots active. Raises UsageError where no
    rebalance is open, where these slots don't move in it, and where `previous` isn't as plans write it.
    """
    if not fleet.rebalancing:
        raise UsageError(
            "no rebalance is open in this file: no shard has `previous`, so nothing leads back or forward."
        )
    if slots is not None:
        check_slots(fleet, slots)
    course = course_of(fleet)
    if course.is_at(goal, slots):
        return None
    after = fleet.model_copy(update={"shards": tuple(_led(fleet, course.led(goal, slots)))})
    if _owners(fleet) != _owners(after):
        raise UsageError(
            "`previous` doesn't show which slots each shard had when this rebalance began: was it edited by hand? Plan from the "
            "last file that `shardctl rebalance plan` wrote."
        )
    return after


def _led(fleet: Fleet, wanted: Mapping[str, SlotSet]) -> Iterator[Shard]:
    for shard in fleet.shards:
        if shard.previous is None:
            yield shard
            continue
        present = (Previous(generation=shard.generation, slots=shard.slots),) if shard.slots.ranges else ()
        change = {
            "slots": wanted[shard.name],
            "generation": shard.generation + 1,
            "previous": (*shard.previous, *present),
        }
        yield shard.model_copy(update=change)


def _course(shards: Iterable[tuple[str, int, SlotSet, Mapping[int, SlotSet]]]) -> Course:
    """`previous` leaves out the states in which a shard had no slots."""
    known = list(shards)
    steps = max((generation - min(previous) for _, generation, _, previous in known if previous), default=1)
    return Course(
        {
            name: (*(previous.get(generation - ago, SlotSet()) for ago in range(steps, 0, -1)), slots)
            for name, generation, slots, previous in known
        }
    )


def _owners(fleet: Fleet) -> Counter[tuple[object, int]]:
    """How many shards have each slot, by the message types that they take."""
    return Counter((types_of(shard), slot) for shard in fleet.shards for slot in shard.slots)


def _slots(text: str) -> SlotSet:
    return SlotSet.parse(text) if text else SlotSet()

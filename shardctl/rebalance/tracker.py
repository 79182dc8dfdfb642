"""Where every slot of a rebalance stands, as far as was seen: waiting, in flight, arrived, or broken."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from shardctl.fleet.spec import Fleet
from shardctl.rebalance import handover
from shardctl.rebalance.handover import HandOver, Place, Stage, Standing
from shardctl.rebalance.views import LaneViews


@dataclass(slots=True, eq=False)
class InFlight:
    """A slot that is due, or has left and not arrived. The times are all that isn't found in the databases."""

    hand_over: HandOver
    standing: Standing
    due_since: float
    token: str | None = None  # of its barrier, once the source's database awaits that
    published: float | None = None  # when its barrier went out first
    repeated: float = 0.0  # when it went out last
    sent: Future[Any] | None = None
    left_since: float | None = None
    work: Future[Any] | None = None  # its copy
    not_before: float = 0.0
    based: bool = True  # as far as is known: what its base lacks is brought over while its barrier isn't met
    round: Future[Any] | None = None  # which does that
    next_round: float = 0.0

    @property
    def stays(self) -> bool:
        return stays(self.hand_over, self.standing)

    @property
    def settling(self) -> bool:
        return self.standing.stage == Stage.DUE and self.published is None


def stays(hand_over: HandOver, standing: Standing) -> bool:
    """Whether the slot stays in its database."""
    return standing.source is not None and standing.source.shard == hand_over.to.shard


class Tracker:
    """`waiting` holds the slots that stay under True, those that move under False, each in the order of their turns."""

    def __init__(self, fleet: Fleet, databases: Mapping[str, Engine]) -> None:
        self._views = LaneViews(databases)
        self._sure = False  # whether everything was looked at since something was odd
        self.complete = False  # whether the last look was at everything
        self.all = handover.hand_overs(fleet)
        self.arrived: set[HandOver] = set()
        self.waiting: dict[bool, deque[tuple[HandOver, Standing]]] = {True: deque(), False: deque()}
        self.preparing: set[HandOver] = set()  # of those that wait: taken out of `waiting`
        self.in_flight: dict[HandOver, InFlight] = {}
        self.broken: dict[HandOver, str] = {}
        self.given_up: dict[HandOver, str] = {}  # why they need a person

    @property
    def unreachable(self) -> Mapping[str, str]:
        return self._views.unreachable

    def look(self, now: float, *, begin: bool) -> list[InFlight]:
        """Those in flight that have left or arrived since the last look. `begin`: those waiting are still to be begun."""
        self.complete = False
        if not self._sure or not (self.in_flight or self.preparing or (begin and any(self.waiting.values()))):
            return self._look_at_everything(now)
        slots = {slot.hand_over.slot for slot in self.in_flight.values()}
        shards = {
            place.shard
            for slot in self.in_flight.values()
            for place in (slot.hand_over.to, slot.standing.source)
            if place
        }
        if not self._views.read_changed(sorted(shards), slots, now):
            return []
        return [slot for slot in list(self.in_flight.values()) if self._moved_on(slot, self._standing(slot.hand_over))]

    def take(
        self, slots: Iterable[tuple[HandOver, Standing]], now: float, tokens: Mapping[tuple[Place, int], str]
    ) -> None:
        """These have become due. Their lanes are read at the next look, also where no other process has changed any.

        `tokens` has those of the barriers that are awaited already, by source and slot.
        """
        for hand_over, standing in slots:
            token = tokens.get((standing.source, hand_over.slot)) if standing.source else None
            self.in_flight[hand_over] = InFlight(hand_over, Standing(Stage.DUE, standing.source), now, token)
            self._views.doubt(place.shard for place in (hand_over.to, standing.source) if place)

    def put_back(self, slots: Sequence[tuple[HandOver, Standing]]) -> None:
        for slot in reversed(slots):
            self.waiting[stays(*slot)].appendleft(slot)

    def done(self, hand_over: HandOver) -> None:
        self.in_flight.pop(hand_over, None)
        self.arrived.add(hand_over)

    def doubt(self, hand_over: HandOver) -> None:
        """Read its lanes again, though it may not have changed since the last look."""
        self._views.doubt((hand_over.to.shard,))

    def give_up(self, hand_over: HandOver, why: str) -> None:
        self.in_flight.pop(hand_over, None)
        self.given_up[hand_over] = why

    def _standing(self, hand_over: HandOver) -> Standing:
        return handover.standing(hand_over, self._views.seen)

    def _moved_on(self, slot: InFlight, standing: Standing) -> bool:
        """Take note of where a slot in flight stands now; whether it has left or arrived."""
        if slot.work is not None:  # the run collects the result of its copy
            return False
        if standing.stage == Stage.ARRIVED:
            self.done(slot.hand_over)
            return True
        if standing.stage not in (Stage.DUE, Stage.LEFT):
            self._sure = False
            return False
        left = slot.standing.stage == Stage.DUE and standing.stage == Stage.LEFT
        slot.standing = standing
        return left

    def _look_at_everything(self, now: float) -> list[InFlight]:
        if not self._views.read_everything(now):
            return []
        standings = {hand_over: self._standing(hand_over) for hand_over in self.all}
        if any(standing.stage == Stage.BROKEN for standing in standings.values()):
            self._views.read_everything(now)  # what looked odd may have changed between the looks at two databases
            standings = {hand_over: self._standing(hand_over) for hand_over in self.all}
        self._sure = self.complete = True
        before = self.in_flight
        self.in_flight = {hand_over: slot for hand_over, slot in before.items() if slot.work is not None}
        self.arrived = {hand_over for hand_over, standing in standings.items() if standing.stage == Stage.ARRIVED}
        self.broken = {
            hand_over: standing.fault for hand_over, standing in standings.items() if standing.stage == Stage.BROKEN
        }
        waiting = [
            (hand_over, standing)
            for hand_over, standing in standings.items()
            if standing.stage == Stage.WAITING and hand_over not in self.preparing and hand_over not in self.given_up
        ]
        for staying in (True, False):
            self.waiting[staying] = deque(in_turns(slot for slot in waiting if stays(*slot) == staying))
        self.arrived -= self.in_flight.keys()
        for hand_over, standing in standings.items():
            if standing.stage in (Stage.DUE, Stage.LEFT) and hand_over not in self.given_up:
                self.in_flight[hand_over] = before.get(hand_over) or InFlight(hand_over, standing, now)
        return [
            slot
            for hand_over, slot in before.items()
            if hand_over in self.arrived or (hand_over in self.in_flight and self._moved_on(slot, standings[hand_over]))
        ]


def in_turns(slots: Iterable[tuple[HandOver, Standing]]) -> Iterator[tuple[HandOver, Standing]]:
    """The slots of each pair of source and destination in turn, so that all databases have a share of the work at any time."""
    pairs: dict[tuple[Place | None, Place], deque[tuple[HandOver, Standing]]] = defaultdict(deque)
    for hand_over, standing in slots:
        pairs[standing.source, hand_over.to].append((hand_over, standing))
    while pairs:
        for pair in list(pairs):
            yield pairs[pair].popleft()
            if not pairs[pair]:
                del pairs[pair]

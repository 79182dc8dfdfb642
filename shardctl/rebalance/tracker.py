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
class InHand:
    """A slot that is due, or has left and not arrived. The times are all that isn't found in the databases."""

    of: HandOver
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
        return stays(self.of, self.standing)

    @property
    def settling(self) -> bool:
        return self.standing.stage == Stage.DUE and self.published is None


def stays(of: HandOver, standing: Standing) -> bool:
    """Whether the slot stays in its database."""
    return standing.source is not None and standing.source.shard == of.to.shard


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
        self.hand: dict[HandOver, InHand] = {}
        self.broken: dict[HandOver, str] = {}
        self.set_aside: dict[HandOver, str] = {}  # why they need a person

    @property
    def unreachable(self) -> Mapping[str, str]:
        return self._views.unreachable

    def look(self, now: float, *, begin: bool) -> list[InHand]:
        """Those in flight that have left or arrived since the last look. `begin`: those waiting are still to be begun."""
        self.complete = False
        if not self._sure or not (self.hand or self.preparing or (begin and any(self.waiting.values()))):
            return self._look_at_everything(now)
        slots = {each.of.slot for each in self.hand.values()}
        shards = {place.shard for each in self.hand.values() for place in (each.of.to, each.standing.source) if place}
        if not self._views.read_changed(sorted(shards), slots, now):
            return []
        return [each for each in list(self.hand.values()) if self._moved_on(each, self._standing(each.of))]

    def take(
        self, ofs: Iterable[tuple[HandOver, Standing]], now: float, tokens: Mapping[tuple[Place, int], str]
    ) -> None:
        """These have become due. Their lanes are read at the next look, also where nobody else has changed any.

        `tokens` has those of the barriers that are awaited already, by source and slot.
        """
        for of, standing in ofs:
            token = tokens.get((standing.source, of.slot)) if standing.source else None
            self.hand[of] = InHand(of, Standing(Stage.DUE, standing.source), now, token)
            self._views.doubt(place.shard for place in (of.to, standing.source) if place)

    def put_back(self, ofs: Sequence[tuple[HandOver, Standing]]) -> None:
        for each in reversed(ofs):
            self.waiting[stays(*each)].appendleft(each)

    def done(self, of: HandOver) -> None:
        self.hand.pop(of, None)
        self.arrived.add(of)

    def doubt(self, of: HandOver) -> None:
        """Look at it anew, though it may not have changed since the last look."""
        self._views.doubt((of.to.shard,))

    def give_up(self, of: HandOver, why: str) -> None:
        self.hand.pop(of, None)
        self.set_aside[of] = why

    def _standing(self, of: HandOver) -> Standing:
        return handover.standing(of, self._views.seen)

    def _moved_on(self, each: InHand, standing: Standing) -> bool:
        """Take note of where a slot in flight stands now; whether it has left or arrived."""
        if each.work is not None:  # the thread that began the copy asks what became of it
            return False
        if standing.stage == Stage.ARRIVED:
            self.done(each.of)
            return True
        if standing.stage not in (Stage.DUE, Stage.LEFT):
            self._sure = False
            return False
        left = each.standing.stage == Stage.DUE and standing.stage == Stage.LEFT
        each.standing = standing
        return left

    def _look_at_everything(self, now: float) -> list[InHand]:
        if not self._views.read_everything(now):
            return []
        found = {of: self._standing(of) for of in self.all}
        if any(standing.stage == Stage.BROKEN for standing in found.values()):
            self._views.read_everything(now)  # what looked odd may have changed between the looks at two databases
            found = {of: self._standing(of) for of in self.all}
        self._sure = self.complete = True
        before = self.hand
        self.hand = {of: each for of, each in before.items() if each.work is not None}
        self.arrived = {of for of, standing in found.items() if standing.stage == Stage.ARRIVED}
        self.broken = {of: standing.fault for of, standing in found.items() if standing.stage == Stage.BROKEN}
        waiting = [
            (of, standing)
            for of, standing in found.items()
            if standing.stage == Stage.WAITING and of not in self.preparing and of not in self.set_aside
        ]
        for staying in (True, False):
            self.waiting[staying] = deque(in_turns(each for each in waiting if stays(*each) == staying))
        self.arrived -= self.hand.keys()
        for of, standing in found.items():
            if standing.stage in (Stage.DUE, Stage.LEFT) and of not in self.set_aside:
                self.hand[of] = before.get(of) or InHand(of, standing, now)
        return [
            each
            for of, each in before.items()
            if of in self.arrived or (of in self.hand and self._moved_on(each, found[of]))
        ]


def in_turns(found: Iterable[tuple[HandOver, Standing]]) -> Iterator[tuple[HandOver, Standing]]:
    """The slots of each pair of source and destination in turn, so that all databases have a share of the work at any time."""
    pairs: dict[tuple[Place | None, Place], deque[tuple[HandOver, Standing]]] = defaultdict(deque)
    for of, standing in found:
        pairs[standing.source, of.to].append((of, standing))
    while pairs:
        for pair in list(pairs):
            yield pairs[pair].popleft()
            if not pairs[pair]:
                del pairs[pair]

"""Slots that are copied while their writes go on, before their barriers are published.

Each is taken from those that wait, copied in one thread of `pool`, and brought up to date round after round until little is left.
Then it is ready, and its rounds go on until the run takes it over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.rebalance.bases import BaseError, Bases
from shardctl.rebalance.copying import Pool
from shardctl.rebalance.handover import HandOver, Standing
from shardctl.rebalance.journal import JournalError
from shardctl.rebalance.stats import Stats
from shardctl.shard.database import DatabaseError, is_transient

LITTLE = 500  # changes: fewer are brought over in a fraction of the time that a pause may take
RETRY_SECONDS = 1.0

Waiting = tuple[HandOver, Standing]


@dataclass(slots=True, eq=False)
class _Slot:
    hand_over: HandOver
    standing: Standing
    work: Future[Any] | None
    based: bool | None = None  # None while it is being copied
    ready: bool = False
    not_before: float = 0.0


class Preparing:
    def __init__(self, bases: Bases, pool: Pool, clock: Callable[[], float], tally: Stats) -> None:
        self._bases, self._pool, self._clock, self._tally = bases, pool, clock, tally
        self._slots: dict[HandOver, _Slot] = {}
        self.trouble: dict[str, str] = {}
        self.failed: dict[HandOver, str] = {}  # they can't be copied, so they weren't begun

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def slots(self) -> set[HandOver]:
        return set(self._slots)

    @property
    def copying(self) -> int:
        return sum(slot.based is None for slot in self._slots.values())

    def take(self, waiting: deque[Waiting], most: int) -> None:
        """As many of those that wait as may be prepared at once, in their order."""
        while waiting and len(self._slots) < most:
            hand_over, standing = waiting.popleft()
            self._slots[hand_over] = _Slot(hand_over, standing, None)

    def step(self, now: float) -> None:
        """Collect what has been done, and begin what is next. Raises JournalError where the rebalance has been closed."""
        for slot in list(self._slots.values()):
            if slot.work is not None and slot.work.done():
                work, slot.work = slot.work, None
                self._collect(slot, work, self._clock())
            if (
                slot.hand_over in self._slots
                and slot.work is None
                and slot.based is not False
                and now >= slot.not_before
            ):
                call = self._bases.make if slot.based is None else self._bases.catch_up
                slot.work = self._pool.submit(call, slot.hand_over, slot.standing.source)

    def take_ready(self, most: int) -> list[Waiting]:
        """Those whose barriers may be published now. One whose round is under way is left to it."""
        ready = [slot for slot in self._slots.values() if slot.ready and slot.work is None][:most]
        for slot in ready:
            del self._slots[slot.hand_over]
        return [(slot.hand_over, slot.standing) for slot in ready]

    def put_back(self, slots: list[Waiting]) -> None:
        """What was taken and couldn't be begun. Its base, if it has one, is found again."""
        for hand_over, standing in slots:
            self._slots[hand_over] = _Slot(hand_over, standing, None)

    def _collect(self, slot: _Slot, work: Future[Any], now: float) -> None:
        error = work.exception()
        if isinstance(error, BaseError):
            self._bases.drop(slot.hand_over)
            self._tally.fell_back.append(f"slot {slot.hand_over.slot}: {error}")
            slot.based, slot.ready = False, True
        elif isinstance(error, JournalError) or (error is not None and not isinstance(error, ShardctlError)):
            raise error
        elif isinstance(error, DatabaseError) and is_transient(error):
            self.trouble[slot.hand_over.to.shard] = str(error)
            slot.not_before = now + RETRY_SECONDS
        elif error is not None:
            del self._slots[slot.hand_over]
            self.failed[slot.hand_over] = (
                f"slot {slot.hand_over.slot}, {slot.standing.source} → {slot.hand_over.to}: {error}"
            )
        else:
            self.trouble.pop(slot.hand_over.to.shard, None)
            self._go_on(slot, work.result(), now)

    def _go_on(self, slot: _Slot, result: Any, now: float) -> None:
        if slot.based is None:
            slot.based = result is not None
            if slot.based:
                self._tally.rows += result.rows or 0
                self._tally.bases += 1
                self._tally.left_behind += result.left_behind
            slot.ready = not slot.based
        elif result is None:  # the log has ended, or the slot is under way: `make` finds out
            slot.based = None
        else:
            self._tally.changes += result.changes
            slot.ready = result.changes < LITTLE
            slot.not_before = now + (result.seconds_to_next if slot.ready else 0.0)

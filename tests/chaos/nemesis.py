"""Which faults, when and where: a schedule drawn from the seed, and who carries it out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.fault import Aim, Fault, GoneError
from tests.chaos.faults import EVERY_FAULT
from tests.chaos.scene import Scene
from tests.chaos.serverfaults import LOCKABLE

MOST_AT_ONCE = 3
QUIET_SECONDS = (0.2, 2.5)  # between the beginnings of two faults
QUIETER_SECONDS = (0.5, 6.0)  # where slots move, which takes servers that answer now and then
STEP_SECONDS = 0.5  # later, when nothing fits now
HOLD_SECONDS = 0.2
HEAL_TRIES = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: when it begins, how long it lasts, whom it hits. Seconds since the start."""

    at: float
    seconds: float
    fault: str
    aim: Aim

    @property
    def end(self) -> float:
        return self.at + self.seconds

    @property
    def resource(self) -> str:
        return EVERY_FAULT[self.fault].resource(self.aim)

    def __str__(self) -> str:
        return f"{self.fault} {EVERY_FAULT[self.fault].target(self.aim)}".rstrip()


def schedule(
    seed: int,
    seconds: float,
    names: Sequence[str],
    replicas: Mapping[str, int],
    quiet: tuple[float, float] = QUIET_SECONDS,
) -> tuple[Planned, ...]:
    """The same for the same arguments. Every fault comes once before any comes twice, as far as it fits; all end in time.

    `replicas` counts them by shard.
    """
    draw = random.Random(f"{seed}/nemesis")
    planned: list[Planned] = []
    bag: list[str] = []
    at = draw.uniform(*quiet)
    while at < seconds:
        if not bag:
            bag = draw.sample(list(names), len(names))
        candidates = (_draw(draw, at, seconds, name, replicas) for name in bag)
        action = next((candidate for candidate in candidates if candidate and _fits(candidate, planned)), None)
        if action:
            bag.remove(action.fault)
            planned.append(action)
            at += draw.uniform(*quiet)
        else:
            at += STEP_SECONDS
            if not any(before.end > at for before in planned):
                bag.clear()  # what is left is too long for the time that is left
    return tuple(planned)


def _draw(draw: random.Random, at: float, seconds: float, name: str, replicas: Mapping[str, int]) -> Planned | None:
    shortest, longest = EVERY_FAULT[name].seconds
    shard = draw.choice(sorted(replicas))
    aim = Aim(shard, draw.randrange(replicas[shard]), draw.choice(LOCKABLE))
    lasts = draw.uniform(shortest, longest)
    left = seconds - at
    return Planned(round(at, 2), round(min(lasts, left), 2), name, aim) if left >= shortest else None


def _fits(new: Planned, planned: Sequence[Planned]) -> bool:
    under_way = [before for before in planned if before.end > new.at]
    return len(under_way) < MOST_AT_ONCE and all(before.resource != new.resource for before in under_way)


@dataclass(frozen=True, slots=True)
class Event:
    """What was done, when: seconds since the start."""

    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.what}"


class Nemesis:
    """A thread for each fault, so that a slow one delays no other. Any of them calls `tell` with each of its events."""

    def __init__(self, scene: Scene, schedule: Sequence[Planned], tell: Callable[[Event], None]) -> None:
        self.history: list[Event] = []
        self.failures: list[Event] = []  # faults that could not be injected or healed: the harness's own trouble
        self._scene, self._tell, self._schedule = scene, tell, schedule
        self._active: dict[int, Planned] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)

    def start(self) -> None:
        self._began = time.monotonic()
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def active(self) -> list[Planned]:
        return list(self._active.values())

    def stop(self) -> None:
        """Heal what is under way and begin nothing more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        begun = []
        for number, planned in enumerate(self._schedule):
            if self._stopping.wait(max(0.0, planned.at - self._seconds())):
                break
            thread = threading.Thread(target=self._carry_out, args=(number, planned), name=str(planned), daemon=True)
            thread.start()
            begun.append(thread)
        for thread in begun:
            thread.join()

    def _carry_out(self, number: int, planned: Planned) -> None:
        with self._scene.turn(planned.resource):  # where the one before was slow to heal, this one begins late
            try:
                fault = EVERY_FAULT[planned.fault](self._scene, planned.aim)
            except GoneError:
                self._note(f"{planned}: isn't there now")
                return
            self._active[number] = planned
            try:
                fault.inject()
                self._note(f"{planned}: begins, for {planned.seconds:.1f} s")
                for wait in self._waits(self._seconds() + planned.seconds):
                    self._stopping.wait(wait)
                    fault.hold()
            except Exception as error:  # noqa: BLE001 - a fault that fails is reported, and healed all the same
                self.failures.append(self._note(f"{planned}: FAILED: {type(error).__name__}: {error}"))
            self._heal(planned, fault)
            del self._active[number]

    def _waits(self, end: float) -> Iterator[float]:
        while not self._stopping.is_set() and (left := end - self._seconds()) > 0:
            yield min(left, HOLD_SECONDS)

    def _heal(self, planned: Planned, fault: Fault) -> None:
        for left in reversed(range(HEAL_TRIES)):
            try:
                fault.heal()
            except Exception as error:  # noqa: BLE001 - reported
                event = self._note(f"{planned}: NOT HEALED: {type(error).__name__}: {error}")
                if not left:
                    self.failures.append(event)
                time.sleep(1)
            else:
                self._note(f"{planned}: healed")
                return

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _note(self, what: str) -> Event:
        event = Event(self._seconds(), what)
        self.history.append(event)
        self._tell(event)
        return event

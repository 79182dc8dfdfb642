"""Many schedules, one after another."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.sim.scenario import Scenario, Trap, drawn
from tests.sim.world import Parts, Result, play

COLLECT_EVERY = 100
EVENTS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Failure:
    scenario: Any
    result: Result
    command: str

    def report(self) -> str:
        """What went wrong, the events before it, and how to see all of them."""
        traps = ", ".join(_shown(trap) for trap in self.scenario.traps)
        lines = self.result.oracle.text().splitlines()
        skipped = f"… {len(lines) - EVENTS_SHOWN} events before\n" if len(lines) > EVENTS_SHOWN else ""
        return (
            f"{self.result.violations[0]}\n{skipped}" + "\n".join(lines[-EVENTS_SHOWN:]) + f"\n"
            f"seed {self.scenario.seed}{f', traps: {traps}' if traps else ''}\n"
            f"to see all of it: {self.command} --trace"
        )


def command(scenario: Scenario) -> str:
    """What a shell runs to play it again."""
    words = ["python -m tests.sim", f"--seed {scenario.seed}"]
    if not scenario.drawn:
        words += ["--small", *(f"--trap {trap}" for trap in scenario.traps)]
        if not scenario.in_flight_dies_with_sender:
            words.append("--in-flight-arrives")
    if scenario.real_store:
        words.append("--real-store")
    if scenario.habits.hand_over:
        words.append("--hand-over")
    return " ".join(words)


def _shown(trap: Trap) -> str:
    return f"{trap.what} r{trap.replica}.{trap.life} before step {trap.step}"


def seeds(numbers: Iterable[int], *, real_store: bool = False, hand_over: bool = False) -> Iterator[Scenario]:
    for number in numbers:
        scenario = drawn(number)
        scenario.real_store = real_store
        scenario.habits.hand_over = float(hand_over)
        yield scenario


def failures(scenarios: Iterable[Scenario], parts: Parts | None = None) -> Iterator[Failure | None]:
    """One item a schedule: its failure, or None."""
    return played(scenarios, lambda scenario: play(scenario, parts), command)


def played(
    scenarios: Iterable[Any], play_one: Callable[[Any], Result], command_of: Callable[[Any], str]
) -> Iterator[Failure | None]:
    with _no_garbage_collection():
        for number, scenario in enumerate(scenarios, 1):
            result = play_one(scenario)
            yield Failure(scenario, result, command_of(scenario)) if result.violations else None
            if number % COLLECT_EVERY == 0:
                gc.collect()


def first_failure(scenarios: Iterable[Scenario], parts: Parts | None = None) -> Failure | None:
    return next((failure for failure in failures(scenarios, parts) if failure), None)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A schedule is thousands of small cycles that all die at its end: looking for dead ones meanwhile takes a third longer."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()

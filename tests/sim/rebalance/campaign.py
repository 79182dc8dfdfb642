"""Many schedules in which slots move, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from tests.sim.campaign import Failure, played
from tests.sim.rebalance.executor import Crash
from tests.sim.rebalance.message import Order
from tests.sim.rebalance.scenario import Scenario, drawn, every_await, every_effect, small
from tests.sim.rebalance.world import Parts, play
from tests.sim.scenario import Trap


def scenario_of(
    seed: int,
    *,
    small_one: bool,
    broken_order: bool,
    traps: tuple[Trap, ...],
    crashes: tuple[Crash, ...],
    after_crash: tuple[str, ...],
) -> Scenario:
    if not small_one:
        return drawn(seed, broken_order=broken_order)
    return small(seed, crashes=crashes, after_crash=after_crash or None, traps=traps, broken_order=broken_order)


def command(scenario: Scenario) -> str:
    """What a shell runs to play it again."""
    words = ["python -m tests.sim --rebalance", f"--seed {scenario.seed}"]
    if set(scenario.orders.values()) != {Order.KEPT}:
        words.append("--broken-order")
    if not scenario.drawn:
        words += ["--small", *(f"--trap {trap}" for trap in scenario.traps)]
        words += [f"--crash {crash}" for crash in scenario.crashes]
        if scenario.after_crash:
            words.append(f"--after-crash {','.join(scenario.after_crash)}")
    return " ".join(words)


def failures(scenarios: Iterable[Scenario], parts: Parts | None = None) -> Iterator[Failure | None]:
    """One item a schedule: its failure, or None."""
    return played(scenarios, lambda scenario: play(scenario, parts), command)


def seeds(numbers: Iterable[int], *, broken_order: bool = False) -> Iterator[Failure | None]:
    return failures(drawn(number, broken_order=broken_order) for number in numbers)


def sweep(seed: int) -> Iterator[Failure | None]:
    """The small scenario, its executor killed at every effect, and its replicas cut short at every await."""
    uncut = play(small(seed))
    return failures(itertools.chain(every_effect(seed, len(uncut.effects)), every_await(seed, uncut.lives)))

"""The simulation, run: few schedules in `make check`, thousands in `make test`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.campaign import Failure, command, failures, first_failure, seeds
from tests.sim.mutants import MUTANTS, NO_LOCKS, WAITING_MUTANTS
from tests.sim.scenario import WAITING_STATEMENT_SECONDS, crashing, drawn, every_await, small, two_awaits, waiting
from tests.sim.world import play

SCHEDULES = 2_000
FEW, SEVERAL = 40, 200
SWEPT = (0, 1, 2)  # seeds of the small scenario
PAIRS = 300


def check(scenarios, parts=None):
    failure = first_failure(scenarios, parts)
    assert failure is None, failure.report()


def test_few_schedules():
    check(seeds(range(FEW)))


@pytest.mark.proof
def test_several_schedules():
    """What never happens proves nothing: these few hundred already hold every kind of fault."""
    missing = set(EVENTS)
    for scenario in seeds(range(SEVERAL)):
        result = play(scenario)
        assert not result.violations, Failure(scenario, result, command(scenario)).report()
        history = result.oracle.text()
        missing -= {event for event in missing if event in history}
    assert not missing


EVENTS = (
    "is killed", "freezes", "thaws", "gets SIGTERM", "handed back", "cuts a stream", "lease ends early", "copy of",
    "lease of", "drops ack", "is flushed", "redis timeout", "redis down", "database timeout", "database answer lost",
    "deadletters answer lost", "deadletters down", "pubsub request lost", "pubsub timeout", "fails over",
    "waits in the inbox", "waits for the row", "refused", "unreadable", "no_slot", "unknown_type", "key_reused", "repeat",
    "still in flight",
)  # fmt: skip


def late(scenario, parts=None):
    """Writes of slots that nobody holds that were committed later than three statement timeouts after they were published."""
    result = play(scenario, parts)
    assert not result.violations, Failure(scenario, result, "").report()
    committed = result.oracle.committed_at
    free = [publication for publication in scenario.publications if publication.message.key not in scenario.locked]
    return [
        publication.message
        for publication in free
        if committed[publication.message.id] - publication.at > 3 * WAITING_STATEMENT_SECONDS
    ]


@pytest.mark.parametrize("locked_slots", [1, 4])
def test_what_waits_for_a_forgotten_transaction_makes_no_other_slot_wait(locked_slots):
    for seed in range(5):
        assert late(waiting(seed, locked_slots)) == []


@pytest.mark.parametrize("mutant", WAITING_MUTANTS.values(), ids=WAITING_MUTANTS.keys())
def test_a_slot_that_makes_others_wait_is_found(mutant):
    assert any(late(waiting(seed, 1), mutant) for seed in range(10))


@pytest.mark.slow
def test_what_kills_its_process_alone_becomes_a_dead_letter():
    for seed in range(10):
        scenario = crashing(seed)
        result = play(scenario)
        assert not result.violations, Failure(scenario, result, "").report()


@pytest.mark.slow
def test_a_fast_start_costs_sound_writes_their_attempts():
    """The scenario proves something: where everything is received at once, sound writes become dead letters."""
    scenarios = [crashing(seed) for seed in range(10)]
    for scenario in scenarios:
        scenario.slow_start = False
    assert any(play(scenario).violations for scenario in scenarios)


@pytest.mark.proof
def test_thousands_of_schedules():
    """Messages are applied once and in order, and acked when that is durable, whatever fails meanwhile."""
    check(seeds(range(SEVERAL, SCHEDULES)))


@pytest.mark.proof
def test_schedules_where_a_new_stream_has_what_the_old_one_had():
    """Were both one reader to the service, what was lost on the old one's way would count as given."""
    check(seeds(range(300), hand_over=True))


@pytest.mark.proof
def test_schedules_with_the_real_store():
    check(seeds(range(100), real_store=True))


@pytest.mark.proof
def test_safety_does_not_rest_on_locks():
    check(seeds(range(300)), NO_LOCKS)


@pytest.mark.proof
@pytest.mark.parametrize("seed", SWEPT)
def test_cut_short_at_every_await(seed):
    """Killed, frozen or stopped before each step that each replica takes; then, for a sample, once more."""
    steps = play(small(seed)).steps
    assert sum(steps) > 100
    check(itertools.chain(every_await(seed, steps), two_awaits(seed, steps, PAIRS)))


@pytest.mark.proof
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mistake_is_found(mutant):
    chances = seeds(range(mutant.seeds), hand_over=mutant.hand_over)
    assert any(failures(chances, mutant.parts)), f"{mutant.seeds} schedules, and nobody noticed"


@pytest.mark.proof
@pytest.mark.slow
def test_one_seed_is_one_history():
    """Also in another process, where strings hash otherwise."""
    numbers = range(5)
    here = [play(drawn(number)).oracle.digest() for number in numbers]
    assert len(set(here)) == len(here)
    assert [play(drawn(number)).oracle.digest() for number in numbers] == here
    code = (
        "from tests.sim.scenario import drawn; from tests.sim.world import play\n"
        f"for number in {list(numbers)}: print(play(drawn(number)).oracle.digest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == here

"""Slots on the move, simulated: a few schedules in `make check`, more of them in `make test`."""

from __future__ import annotations

import dataclasses

import pytest

from tests.sim.campaign import Failure
from tests.sim.rebalance.campaign import command, failures
from tests.sim.rebalance.delta_mutants import MUTANTS as DELTA_MUTANTS
from tests.sim.rebalance.delta_mutants import NO_SECOND_COPY, SLOW, aborted_twice
from tests.sim.rebalance.executor import Crash
from tests.sim.rebalance.mutants import MUTANTS, TWICE
from tests.sim.rebalance.reads import MISTAKEN, Application
from tests.sim.rebalance.scenario import (
    copied_ahead,
    drawn,
    every_await,
    every_effect,
    finish_cut_short,
    slot_by_slot,
    small,
    there_and_back,
)
from tests.sim.rebalance.world import Parts, play

FEW, SCHEDULES = 2, 35
SWEPT, EFFECT_STRIDE, AWAIT_STRIDE = (
    (0, 1, 3),  # copied ahead, before and after the pods have been replaced; copied in the pause
    9,
    150,
)  # `python -m tests.sim --rebalance --sweep 0` takes each


def check(scenarios, parts=None):
    failure = next((failure for failure in failures(scenarios, parts) if failure), None)
    assert failure is None, failure.report()


@pytest.mark.slow
def test_uncut():
    """Slots move under load and nothing is published again; a deletion more or less would show in the number of effects."""
    result = play(small(0))
    assert not result.violations, Failure(small(0), result, command(small(0))).report()
    assert result.again == result.again_counted == 0
    history = result.oracle.text()
    assert history.count("copied to s1") > 1  # while its writes go on, and then what had changed
    for event in ("copied to s1", "dead-lettered", "drops", "left", "due", "arriving"):
        assert event in history


@pytest.mark.slow
def test_few_schedules():
    check(drawn(number) for number in range(FEW))


@pytest.mark.proof
def test_schedules():
    """Nothing is lost, doubled, reordered or misplaced, whatever fails while slots move."""
    check(drawn(number) for number in range(FEW, SCHEDULES))


@pytest.mark.proof
def test_schedules_whose_producers_break_the_rules():
    """Where nobody keeps order nothing is lost or doubled either; what a barrier overtook is published again, and counted."""
    again = 0
    for number in range(SCHEDULES // 2):
        scenario = drawn(number, broken_order=True)
        result = play(scenario)
        assert not result.violations, Failure(scenario, result, command(scenario)).report()
        again += result.again
        assert bool(result.again) >= bool(result.again_counted)
    assert again


@pytest.mark.proof
@pytest.mark.parametrize("seed", SWEPT)
def test_the_executor_killed_at_every_effect(seed):
    """Before it and after it; then it goes on, or is aborted and goes on, or is aborted and goes back."""
    effects = len(play(small(seed)).effects)
    assert effects > 20
    check(every_effect(seed, effects, EFFECT_STRIDE))


@pytest.mark.proof
@pytest.mark.parametrize("seed", SWEPT)
def test_replicas_cut_short_between_awaits(seed):
    check(every_await(seed, play(small(seed)).lives, AWAIT_STRIDE))


@pytest.mark.proof
def test_somebody_publishes_barriers_of_their_own():
    """They know the journals and every token that was ever published; whatever they send changes nothing."""
    scenarios = [dataclasses.replace(small(seed), hostile=True) for seed in range(3)]
    check(scenarios)
    assert play(scenarios[0]).oracle.text().count("hostile  publishes") > 10


@pytest.mark.proof
def test_every_barrier_published_twice():
    check(map(small, range(10)), TWICE)


@pytest.mark.proof
def test_two_people_abort():
    """One is slow: what it has seen is another copy by the time it deletes."""
    check(map(aborted_twice, range(10)), SLOW)


@pytest.mark.proof
@pytest.mark.slow
def test_there_back_and_there_again_without_a_second_copy():
    check(map(there_and_back(small), range(2)), NO_SECOND_COPY)
    check(map(slot_by_slot(small), range(2)), NO_SECOND_COPY)


@pytest.mark.proof
def test_there_back_and_there_again():
    check(map(there_and_back(), range(SCHEDULES // 2)))
    check(map(slot_by_slot(), range(SCHEDULES // 2)))
    check(map(finish_cut_short, range(16)))


@pytest.mark.proof
@pytest.mark.parametrize(
    ("made", "seed"),
    [(there_and_back(small), 1), (there_and_back(small), 2), (slot_by_slot(small), 2)],
    ids=["there again", "part of it", "slot by slot"],
)
def test_there_back_and_there_again_killed_at_every_effect(made, seed):
    effects = len(play(made(seed)).effects)
    crashes = (
        Crash(number, when) for number in range(1, effects + 1, 2 * EFFECT_STRIDE) for when in ("before", "after")
    )
    check(dataclasses.replace(made(seed), crashes=(crash,)) for crash in crashes)


@pytest.mark.slow
def test_an_application_reads_nothing_older_than_promised():
    """By key and over all shards, while slots move there and back, and the executor dies."""
    crashes = [Crash(number, "after") for number in range(6, 24, 8)]
    scenarios = [*(small(0, crashes=(crash,)) for crash in crashes), there_and_back(small)(0)]
    check(scenarios, Parts(application=Application))
    assert play(scenarios[0], Parts(application=Application)).reads > 20


@pytest.mark.proof
def test_an_application_reads_nothing_older_than_promised_whatever_fails():
    check(map(drawn, range(SCHEDULES)), Parts(application=Application))
    check(every_effect(0, len(play(small(0)).effects), EFFECT_STRIDE), Parts(application=Application))


@pytest.mark.proof
@pytest.mark.parametrize("application", MISTAKEN, ids=lambda kind: kind.__name__)
def test_a_mistaken_reader_is_found(application):
    failure = next(filter(None, failures(map(small, range(30)), Parts(application=application))), None)
    assert failure is not None
    assert failure.result.violations[0].startswith("reader saw")


@pytest.mark.slow
def test_every_round_refused():
    """Then the slot is copied as a whole in its pause, and the run counts it."""
    scenario = copied_ahead(small)(0)
    scenario.manners.refuse_round = 1.0
    result = play(scenario)
    assert not result.violations, Failure(scenario, result, command(scenario)).report()
    assert "fell back: slot 1: refused" in result.oracle.text()


@pytest.mark.proof
@pytest.mark.parametrize("mutant", [*MUTANTS.values(), *DELTA_MUTANTS.values()], ids=[*MUTANTS, *DELTA_MUTANTS])
def test_a_mistake_is_found(mutant):
    """By the harm that it does: a mutant that no longer fits what it changes, and dies of that, proves nothing."""
    failure = next(filter(None, failures(map(mutant.scenario, range(mutant.seeds)), mutant.parts)), None)
    assert failure is not None, f"{mutant.seeds} schedules, and nobody noticed"
    assert " died of " not in failure.result.violations[0], failure.report()


@pytest.mark.proof
@pytest.mark.slow
def test_one_seed_is_one_history():
    for scenario in (lambda: small(3), lambda: drawn(3), lambda: drawn(4, broken_order=True)):
        assert play(scenario()).oracle.digest() == play(scenario()).oracle.digest()

"""What the inbox and the desk remember for how long: no write takes effect twice, and none is lost, within ten weeks."""

from __future__ import annotations

import pytest

from tests.sim.memory.mutants import MUTANTS
from tests.sim.memory.world import play

FEW, SEVERAL = 4, 120


def check(seeds):
    for seed in seeds:
        result = play(seed)
        history = "\n".join(result.history)
        assert not result.violations, f"{history}\nseed {seed}: {result.violations[0]}"
        yield result


@pytest.mark.slow
def test_few_schedules():
    assert list(check(range(FEW)))


EVENTS = {
    "published again", "comes again", "crashes its consumer", "crashes behind its letter", "loses its ack",
    "dead-lettered by Pub/Sub", "dead-lettered by a consumer", "replayed", "taken off", "refused as forgotten",
    "refused as parked", "refused as unrecorded",
}  # fmt: skip


@pytest.mark.proof
def test_several_schedules():
    """What never happens proves nothing: they hold every way in which a write comes again."""
    met = set().union(*(result.met for result in check(range(SEVERAL))))
    assert met >= EVENTS


@pytest.mark.proof
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mistake_is_found(mutant):
    assert any(play(seed, mutant.parts).violations for seed in range(mutant.seeds)), "nobody noticed"


@pytest.mark.slow
def test_one_seed_is_one_history():
    assert play(1).history == play(1).history

"""A seed is a story: the same writes and the same faults, every time."""

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.nemesis import MOST_AT_ONCE, schedule
from tests.chaos.writes import Stream

REPLICAS = {"s0": 2, "s1": 2, "s2": 2}


def test_a_seed_gives_the_same_schedule_again_and_another_another():
    first, again, other = (schedule(seed, 120, tuple(FAULTS), REPLICAS) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_seed_gives_the_same_writes_again_and_each_producer_its_own():
    first, again, other = (list(Stream(1, producer, 500)) for producer in (0, 0, 1))
    assert first == again
    assert not {operation.key for operation, _ in first} & {operation.key for operation, _ in other}


def test_numbers_of_an_entity_have_no_gap_and_second_copies_come_later():
    seen: dict[str, int] = {}
    published = set()
    copies = 0
    for operation, duplicate in Stream(3, 0, 2_000):
        assert duplicate == (operation.key in published)
        published.add(operation.key)
        copies += duplicate
        if not duplicate:
            seen[operation.entity] = seen.get(operation.entity, 0) + 1
            assert operation.number == seen[operation.entity]
    assert copies > 10


@pytest.mark.parametrize("seed", range(20))
def test_faults_overlap_in_bounds_and_end_in_time(seed):
    faults = schedule(seed, 60, tuple(FAULTS), REPLICAS)
    for planned in faults:
        others = [other for other in faults if other.at <= planned.at < other.end]
        assert len(others) <= MOST_AT_ONCE
        assert len({other.resource for other in others}) == len(others)
        assert planned.end <= 60.01


def test_a_long_run_has_every_fault():
    faults = schedule(1, 120, tuple(FAULTS), REPLICAS)
    assert {planned.fault for planned in faults} == set(FAULTS)

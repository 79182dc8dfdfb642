"""How long to wait before the next try."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.supervision.backoff import backoff


@given(failures=st.integers(0, 1_000_000), draw=st.floats(0, 1))
def test_it_doubles_within_its_bounds_and_never_lets_all_come_at_once(failures, draw):
    most = min(10.0, 0.2 * 2 ** max(min(failures, 20) - 1, 0))
    assert most / 2 <= backoff(failures, 0.2, 10.0, draw) <= most
    assert backoff(failures, 0.2, 10.0, 0.0) < backoff(failures, 0.2, 10.0, 1.0)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 1.0), (1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (10**9, 60.0)], ids=str
)
def test_the_longest_wait_after_so_many_failures(failures, seconds):
    assert math.isclose(backoff(failures, 1.0, 60.0, 1.0), seconds)

"""How fast the inbox is purged: quick chunks, long rests while there is time, and as much as comes in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.replica.pace import CHUNK_SECONDS, LONGEST_REST, MOST_ROWS, REST_SECONDS, SHORTEST_REST, Pace


def test_while_there_is_time_it_takes_a_fortieth_of_a_connections_time():
    pace = Pace(60.0)
    pace.begin(0.0)
    assert pace.purged(0.01, 1.0) == pytest.approx(0.39)


def test_a_pass_that_takes_too_long_rests_half_as_long_for_each_minute():
    pace = Pace(60.0)
    pace.begin(0.0)
    rests = [pace.purged(0.1, now) / 0.1 for now in (30.0, 61.0, 121.0, 301.0, 10_000.0)]
    assert rests == pytest.approx([39, 19.5, 9.75, 39 / 32, SHORTEST_REST])


def test_when_it_has_caught_up_it_slows_down_step_by_step():
    pace = Pace(60.0)
    pace.begin(0.0)
    pace.purged(0.1, 241.0)
    rests = []
    for _ in range(6):
        pace.finished(0.1)
        pace.begin(0.0)
        rests.append(pace.rest)
    assert rests == pytest.approx([39 / 8, 39 / 4, 39 / 2, 39, 39, 39])


def test_a_pass_goes_on_behind_a_failure():
    """Otherwise a purge that fails now and then would never be behind."""
    pace = Pace(60.0)
    for now in (0.0, 50.0, 100.0):
        pace.begin(now)
        pace.failed(now)
    assert pace.rest == LONGEST_REST / 2


@given(st.floats(1e-5, 30.0), st.integers(1, MOST_ROWS))
def test_chunks_come_to_take_a_quarter_of_a_second_or_are_as_large_as_may_be(seconds_a_row, rows):
    pace = Pace(60.0, rows)
    pace.begin(0.0)
    for _ in range(40):
        pace.purged(pace.rows * seconds_a_row, 0.0)
    assert 1 <= pace.rows <= MOST_ROWS
    if 1 < pace.rows < MOST_ROWS:
        assert CHUNK_SECONDS * 0.4 <= pace.rows * seconds_a_row <= CHUNK_SECONDS * 1.01


@given(st.floats(0.0, 1e4), st.floats(0.0, 1e6))
def test_a_rest_is_bounded(seconds, now):
    pace = Pace(60.0)
    pace.begin(0.0)
    assert 0.0 <= pace.purged(seconds, now) <= REST_SECONDS


@pytest.mark.parametrize("rows_a_second", [10, 5_000, 50_000])
def test_as_much_goes_as_comes_if_the_database_can(rows_a_second):
    """A model of ten hours, minute by minute: a transaction takes 5 ms and 5 µs a row, and rows grow old at an even rate."""
    pace, waiting, peaks = Pace(60.0), 0.0, []
    for minute in range(600):
        pace.begin(minute * 60.0)
        seconds = 0.005 + pace.rows * 5e-6
        waiting += rows_a_second * 60
        peaks.append(waiting)
        waiting -= pace.rows / (seconds + pace.purged(seconds, minute * 60.0 + 30)) * 60
        if waiting <= 0:
            waiting = 0.0
            pace.finished(seconds)
        else:
            pace.purged(seconds, minute * 60.0 + 60)
    assert max(peaks[300:]) <= max(peaks[:300])

"""How fast the inbox is purged: quick chunks, long rests while there is time, and as much as comes in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.replica.pace import CHUNK_SECONDS, LONGEST_REST, MOST_PAGES, REST_SECONDS, SHORTEST_REST, Pace


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


@given(st.floats(1e-5, 30.0), st.integers(1, MOST_PAGES))
def test_chunks_come_to_take_a_quarter_of_a_second_or_are_as_large_as_may_be(seconds_a_page, pages):
    pace = Pace(60.0, pages)
    pace.begin(0.0)
    for _ in range(40):
        pace.purged(pace.pages * seconds_a_page, 0.0)
    assert 1 <= pace.pages <= MOST_PAGES
    if 1 < pace.pages < MOST_PAGES:
        assert CHUNK_SECONDS * 0.4 <= pace.pages * seconds_a_page <= CHUNK_SECONDS * 1.01


@given(st.floats(0.0, 1e4), st.floats(0.0, 1e6))
def test_a_rest_is_bounded(seconds, now):
    pace = Pace(60.0)
    pace.begin(0.0)
    assert 0.0 <= pace.purged(seconds, now) <= REST_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("rows_a_second", [10, 5_000, 20_000])
def test_as_much_goes_as_comes_if_the_database_can(rows_a_second):
    """A model of walks through an inbox that keeps a day: a page takes 20 µs, and 5 µs for each row in it that goes."""
    day, walk_seconds, rows_a_page = 86_400.0, 86_400.0 / 20, 136
    pace, now, sizes = Pace(walk_seconds), 0.0, []
    rows = rows_a_second * day  # and all that is older
    for _ in range(60):
        began, pages = now, rows / rows_a_page
        old = max(0.0, rows - rows_a_second * day) / pages
        pace.begin(now)
        while pages > 0:
            chunk = min(pages, 50 * pace.pages)  # of equal ones
            seconds = pace.pages * (20e-6 + 5e-6 * old)
            pages -= chunk
            now += chunk / pace.pages * (seconds + pace.purged(seconds, now))
        pace.finished(seconds)
        rows = rows - old * rows / rows_a_page + rows_a_second * (now - began)
        wait = max(0.0, began + walk_seconds - now)
        now, rows = now + wait, rows + rows_a_second * wait
        sizes.append(rows)
    assert max(sizes[30:]) <= 1.01 * max(sizes[:30])
    assert max(sizes) <= 1.5 * rows_a_second * day

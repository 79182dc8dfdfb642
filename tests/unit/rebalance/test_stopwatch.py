"""Time in which something is under way, whatever overlaps."""

from contextlib import suppress

from shardctl.rebalance.stopwatch import Stopwatch


def test_time_that_overlaps_counts_once():
    now = 10.0
    watch = Stopwatch(lambda: now)
    first, second = watch.running(), watch.running()
    first.__enter__()
    now = 11.0
    second.__enter__()
    now = 13.0
    first.__exit__(None, None, None)
    now = 14.0
    second.__exit__(None, None, None)
    now = 20.0
    assert watch.seconds == 4.0


def test_what_is_under_way_counts_up_to_now():
    now = 10.0
    watch = Stopwatch(lambda: now)
    with watch.running():
        now = 12.0
        assert watch.seconds == 2.0


def test_what_fails_has_ended():
    now = 10.0
    watch = Stopwatch(lambda: now)
    with suppress(KeyError), watch.running():
        now = 11.0
        raise KeyError
    now = 20.0
    assert watch.seconds == 1.0

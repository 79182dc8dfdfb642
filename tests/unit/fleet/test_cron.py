"""When cron lines come, held against a walk over every minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from shardctl.fleet import cron
from shardctl.fleet.cron import next_run

BERLIN = ZoneInfo("Europe/Berlin")
WORDS = (None, None, None, "jan feb mar apr may jun jul aug sep oct nov dec", "sun mon tue wed thu fri sat")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "zone", "after", "runs"),
    [
        ("*/15 * * * *", "Etc/UTC", "2026-01-01T00:00", ["2026-01-01T00:15", "2026-01-01T00:30"]),
        ("30 4 * * mon-fri", "Europe/Berlin", "2026-07-03T02:30", ["2026-07-06T02:30", "2026-07-07T02:30"]),
        ("0 0 1 * sat", "Etc/UTC", "2026-05-01T00:00", ["2026-05-02T00:00", "2026-05-09T00:00"]),
        ("0 0 29 2 *", "Etc/UTC", "2096-02-29T00:00", ["2104-02-29T00:00"]),
        ("0 0 * * 7", "Etc/UTC", "2026-01-01T00:00", ["2026-01-04T00:00", "2026-01-11T00:00"]),
        ("0-5/5,59 23 31 12 *", "Etc/UTC", "2026-01-01T00:00", ["2026-12-31T23:00", "2026-12-31T23:05", "2026-12-31T23:59"]),
        # The clocks go forward at 2:00 on 29 March: 2:30 isn't shown that day.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T01:30", ["2026-03-30T00:30"]),
        # They go back at 3:00 on 25 October: 2:30 is shown twice.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-26T01:30"]),
        ("0 3 * * *", "Australia/Lord_Howe", "2026-04-03T20:00", ["2026-04-04T16:30", "2026-04-05T16:30"]),
        ("10 0 30 12 *", "Pacific/Apia", "2011-01-01T00:00", ["2012-12-29T10:10"]),  # a day that Samoa skipped
    ],
)  # fmt: skip
def test_the_next_runs(line, zone, after, runs):
    moment = utc(after)
    for run in runs:
        moment = next_run(line, ZoneInfo(zone), moment)
        assert moment == utc(run)


def field(number):
    least, most = BOUNDS[number]
    value = st.integers(least, most)
    span = st.tuples(value, value).map(lambda ends: f"{min(ends)}-{max(ends)}")
    stepped = st.tuples(st.one_of(st.just("*"), span), st.integers(1, 20)).map(lambda both: f"{both[0]}/{both[1]}")
    parts = [value.map(str), span, stepped]
    if WORDS[number]:
        parts.append(st.sampled_from(WORDS[number].split()))
    return st.one_of(st.just("*"), st.lists(st.one_of(*parts), min_size=1, max_size=3).map(",".join))


def shown(text, least, most, words):
    """The numbers that a field matches, the long way round."""
    minutes = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        ends = (
            [least, most]
            if span == "*"
            else [words.index(e) + least if e in words else int(e) for e in span.split("-")]
        )
        minutes |= {
            n for n in range(least, most + 1) if ends[0] <= n <= ends[-1] and (n - ends[0]) % int(step or 1) == 0
        }
    return minutes


def walk(line, zone, after, minutes):
    texts = line.split(" ")
    allowed = [shown(text, *BOUNDS[n], (WORDS[n] or "").split()) for n, text in enumerate(texts)]
    moment = after.replace(second=0, microsecond=0)
    for _ in range(minutes):
        moment += timedelta(minutes=1)
        wall = moment.astimezone(zone)
        day, weekday = wall.day in allowed[2], bool({wall.isoweekday(), wall.isoweekday() % 7} & allowed[4])
        if (
            wall.minute in allowed[0]
            and wall.hour in allowed[1]
            and wall.month in allowed[3]
            and ((day and weekday) if "*" in (texts[2], texts[4]) else (day or weekday))
        ):
            return moment
    return None


# Times around which the clocks of these zones change: forward, back, by half an hour, over midnight.
CHANGES = [
    ("Etc/UTC", "2026-02-28T12:00"),
    ("Europe/Berlin", "2026-03-29T00:00"),
    ("Europe/Berlin", "2026-10-24T23:30"),
    ("Australia/Lord_Howe", "2026-04-04T14:00"),
    ("America/Havana", "2026-11-01T03:00"),
    ("America/Sao_Paulo", "2018-02-18T00:30"),
    ("Asia/Kathmandu", "2026-12-31T17:00"),
]


@pytest.mark.slow
@examples(1.5)
@given(
    change=st.sampled_from(CHANGES),
    fields=st.tuples(field(0), field(1), field(2), st.just("*"), field(4)),
    ahead=st.integers(-90, 240),
    seconds=st.integers(0, 59),
)
def test_a_run_is_the_first_minute_that_the_wall_shows(change, fields, ahead, seconds):
    line, zone, after = (
        " ".join(fields),
        ZoneInfo(change[0]),
        utc(change[1]) + timedelta(minutes=ahead, seconds=seconds),
    )
    minutes = 24 * 60
    instant, expected = next_run(line, zone, after), walk(line, zone, after, minutes)
    if expected is not None:
        assert instant == expected
    else:
        assert instant is None or instant > after + timedelta(minutes=minutes - 1)


def test_a_run_comes_after_the_moment_asked_for():
    at = utc("2026-01-01T00:15")
    assert next_run("15 * * * *", BERLIN, at) == at + timedelta(hours=1)
    assert next_run("15 * * * *", BERLIN, at - timedelta(microseconds=1)) == at


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("60 * * * *", "the minute is '60', and runs from 0 to 59"),
        ("* 5-1 * * *", "runs backwards"),
        ("*/0 * * * *", "step"),
        ("0 0 30 feb *", "no month"),
        ("0 0 31 2,4,6,9,11 *", "no month"),
        ("0 0 30 2 1", None),  # every Monday of February
        ("0 0 29 2 *", None),
    ],
)
def test_what_is_wrong_with_a_line(line, says):
    assert (cron.fault(line) is None) if says is None else (says in cron.fault(line))

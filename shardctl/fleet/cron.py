"""Cron lines of five fields, read as Cloud Scheduler reads them, and when they come next. Pure.

https://cloud.google.com/scheduler/docs/configuring/cron-job-schedules: a job runs whenever the clock on the wall shows its time.
So a time that daylight saving skips doesn't run that day, and one that it repeats runs twice. Where neither the day of the month
nor the day of the week is `*`, a job runs on days that match either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Each field's name, least and most number, and the words it knows for numbers from `least` on.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LOOK_AHEAD_DAYS = 8 * 366 + 1  # between two 29ths of February, over the year 2100


@dataclass(frozen=True, slots=True)
class Times:
    """What a cron line matches. Sunday is 0."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def on(self, day: date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        joined = of_month and of_week if self.any_day or self.any_weekday else of_month or of_week
        return joined and day.month in self.months


def fault(cron: str) -> str | None:
    """Why Cloud Scheduler would refuse a cron line, or never run it; None where it would do neither."""
    for text, (name, least, most, words) in zip(cron.split(" "), _FIELDS, strict=True):
        for part in text.split(","):
            span, slash, step = part.partition("/")
            if slash and not (step.isdecimal() and int(step) >= 1):
                return f"the {name} {text!r} has the step {step!r}, and a number from 1 on is wanted."
            if span == "*":
                continue
            ends = [_number(end, least, words) for end in span.split("-")]
            if len(ends) > 2 or any(end is None or not least <= end <= most for end in ends):
                return f"the {name} is {text!r}, and runs from {least} to {most}."
            if len(ends) == 2 and (ends[0] or 0) > (ends[1] or 0):
                return f"the {name} {span!r} runs backwards."
    times = read(cron)
    if times.any_weekday and not any(min(times.days) <= _LONGEST_MONTH[month - 1] for month in times.months):
        return f"no month of {cron!r} has such a day."
    return None


@lru_cache
def read(cron: str) -> Times:
    """A cron line without a fault."""
    texts = cron.split(" ")
    minutes, hours, days, months, weekdays = (_numbers(text, field) for text, field in zip(texts, _FIELDS, strict=True))
    return Times(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(number % 7 for number in weekdays),
        texts[2] == "*",
        texts[4] == "*",
    )


def next_run(cron: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """The first minute after `after` at which the wall's clock in the zone shows a time of the line, in UTC.

    None where none comes within eight years. The line has no fault.
    """
    times = read(cron)
    # From the day before on: where the clock goes back over midnight, a part of yesterday is repeated.
    first = after.astimezone(zone).date() - timedelta(days=1)
    for number in range(_LOOK_AHEAD_DAYS):
        day = first + timedelta(days=number)
        # The next day too, for the same reason: its first minutes may come before the last ones of this day.
        runs = [
            run
            for calendar_day in (day, day + timedelta(days=1))
            for run in _runs(times, zone, calendar_day)
            if run > after
        ]
        if runs:
            return min(runs)
    return None


def _runs(times: Times, zone: ZoneInfo, day: date) -> Iterator[datetime]:
    if not times.on(day):
        return
    for hour in times.hours:
        for minute in times.minutes:
            for fold in (0, 1):
                wall = datetime(day.year, day.month, day.day, hour, minute, fold=fold, tzinfo=zone)
                moment = wall.astimezone(UTC)
                shown = moment.astimezone(zone)
                # Not where the clock skips this time, and only once where it occurs once.
                if shown.replace(tzinfo=None) == wall.replace(tzinfo=None, fold=shown.fold) and shown.fold == fold:
                    yield moment


def _numbers(text: str, field: tuple[str, int, int, tuple[str, ...]]) -> set[int]:
    _, least, most, words = field
    numbers: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        if span == "*":
            ends = [least, most]
        else:
            ends = [number for end in span.split("-") if (number := _number(end, least, words)) is not None]
        last = most if slash and len(ends) == 1 else ends[-1]  # 5/15 is 5-59/15
        numbers.update(range(ends[0], last + 1, int(step) if slash else 1))
    return numbers


def _number(text: str, least: int, words: tuple[str, ...]) -> int | None:
    if text.isdecimal():
        return int(text)
    return least + words.index(text.lower()) if text.lower() in words else None

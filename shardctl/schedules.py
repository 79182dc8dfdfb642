"""Writes that Cloud Scheduler publishes into the fleet, each as its job will send it. Pure.

A job's Pub/Sub target has a topic, a body and attributes; it has no ordering key. So a scheduled write reaches its shard by
its slot, as any other does, but Pub/Sub gives it no place among the other writes of its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shardctl import topology
from shardctl.faults import Fault
from shardctl.message import Encoded, InvalidWriteError, Write, encode
from shardctl.spec import Fleet, Schedule

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
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)  # the timestamp is left out, so any will do


@dataclass(frozen=True, slots=True)
class Job:
    """One job of Cloud Scheduler, and the message it publishes."""

    name: str
    schedule: Schedule
    topic: topology.Topic
    data: bytes
    attributes: tuple[tuple[str, str], ...]


def jobs(fleet: Fleet) -> tuple[Job, ...]:
    """In the file's order, each on the topic of its slot. The fleet has no faults."""
    found = []
    for schedule in fleet.schedules:
        write = _encoded(fleet, schedule)
        topic = topology.topic_of(fleet, write.slot)
        attributes = tuple(sorted(write.attributes.items()))
        found.append(Job(f"{fleet.fleet}-{schedule.name}", schedule, topic, write.data, attributes))
    return tuple(found)


def _encoded(fleet: Fleet, schedule: Schedule) -> Encoded:
    write = Write(schedule.type, schedule.body, schedule.key, schedule.operation)
    encoded = encode(fleet, write, _SOME_TIME)
    # A job's attributes are the same at each run, so a timestamp would lie; the service's publish time is the write's time.
    del encoded.attributes[fleet.routing.attributes.timestamp]
    return encoded


def faults(fleet: Fleet) -> Iterator[Fault]:
    """What is wrong with the fleet's schedules."""
    seen: dict[str, int] = {}
    for number, schedule in enumerate(fleet.schedules):
        at = ("schedules", number)
        first = seen.setdefault(schedule.name, number)
        if first != number:
            yield Fault((*at, "name"), f"{schedule.name!r} is also the name of schedules[{first}].", "name each once.")
        if wrong := cron_fault(schedule.cron):
            yield Fault((*at, "cron"), wrong, "fields: minute, hour, day of month, month, day of week.")
        if not _zone_exists(schedule.time_zone):
            yield Fault((*at, "time_zone"), f"there is no time zone {schedule.time_zone!r}.", "such as Europe/Berlin.")
        if schedule.type not in fleet.message_types:
            fix = f"declare it, or use one of: {', '.join(fleet.message_types)}."
            yield Fault((*at, "type"), f"{schedule.type!r} isn't among message_types.", fix)
            continue
        kind = fleet.message_types[schedule.type]
        if kind.table and (schedule.operation or kind.operation) == "insert":
            fix = "operation: upsert writes it anew each time."
            yield Fault((*at, "operation"), "from the second run on the row is there, and the insert fails.", fix)
        try:
            _encoded(fleet, schedule)
        except InvalidWriteError as error:
            yield Fault((*at, "body"), f"{error}.")


def cron_fault(cron: str) -> str | None:
    """What keeps Cloud Scheduler from taking a cron line; None where nothing does."""
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
    return None


def _number(text: str, least: int, words: tuple[str, ...]) -> int | None:
    if text.isdecimal():
        return int(text)
    return least + words.index(text.lower()) if text.lower() in words else None


def _zone_exists(name: str) -> bool:
    """True also where this machine knows no time zones at all, so that nothing can be told."""
    for zone in (name, "Europe/London"):
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
        return zone == name
    return True

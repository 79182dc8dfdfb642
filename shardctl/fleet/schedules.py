"""Writes that Cloud Scheduler publishes into the fleet, each as its job will send it. Pure.

A job's Pub/Sub target has a topic, a body and attributes; it has no ordering key. So a scheduled write reaches its shard by
its slot, as any other does, but Pub/Sub doesn't order it among the other writes of its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shardctl.fleet import cron, topology
from shardctl.fleet.spec import Fleet, Schedule
from shardctl.fleet.spec_errors import Fault
from shardctl.fleet.suggestion import suggestion
from shardctl.wire.message import Encoded, InvalidWriteError, Write, encode

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
    all_jobs = []
    for schedule in fleet.schedules:
        write = _encoded(fleet, schedule)
        topic = topology.topic_of(fleet, write.slot)
        attributes = tuple(sorted(write.attributes.items()))
        all_jobs.append(Job(f"{fleet.fleet}-{schedule.name}", schedule, topic, write.data, attributes))
    return tuple(all_jobs)


def _encoded(fleet: Fleet, schedule: Schedule) -> Encoded:
    write = Write(schedule.type, schedule.body, schedule.key, schedule.operation)
    encoded = encode(fleet, write, _SOME_TIME)
    # A job's attributes are the same at each run, so a timestamp would be wrong; the publish time is the write's time.
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
        if wrong := cron.fault(schedule.cron):
            yield Fault((*at, "cron"), wrong, "fields: minute, hour, day of month, month, day of week.")
        if not _zone_exists(schedule.time_zone):
            yield Fault((*at, "time_zone"), f"there is no time zone {schedule.time_zone!r}.", "such as Europe/Berlin.")
        if schedule.type not in fleet.message_types:
            fix = f"declare it, or use one of: {', '.join(fleet.message_types)}."
            near = suggestion(schedule.type, fleet.message_types)
            yield Fault((*at, "type"), f"{schedule.type!r} isn't among message_types.{near}", fix)
            continue
        kind = fleet.message_types[schedule.type]
        if kind.table and (schedule.operation or kind.operation) == "insert":
            fix = "operation: upsert replaces the row each time."
            yield Fault((*at, "operation"), "from the second run on the row exists, and the insert fails.", fix)
        try:
            _encoded(fleet, schedule)
        except InvalidWriteError as error:
            yield Fault((*at, "body"), f"{error}.")


def _zone_exists(name: str) -> bool:
    """True also where this machine has no time zone database, so that the name can't be checked."""
    for zone in (name, "Europe/London"):
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
        return zone == name
    return True

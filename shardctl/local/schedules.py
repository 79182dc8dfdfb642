"""The clock of a local fleet: publishes what Cloud Scheduler's jobs would, when they would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import grpc

from shardctl.broker import protos
from shardctl.errors import UsageError
from shardctl.fleet import cron
from shardctl.fleet.schedules import Job, jobs
from shardctl.fleet.spec import Fleet

Tell = Callable[[str], object]
TIMEOUT_SECONDS = 10.0
LATE = timedelta(minutes=1)  # after which a run is reported as late

_PublishRequest, _PublishResponse = protos.of("PublishRequest"), protos.of("PublishResponse")


class Clock:
    """Publishes, at each `look`, the runs that have become due. `now` may run faster than real time.

    If several runs of a job have become due between two looks, as after a laptop's sleep, it publishes one and continues from
    there. A run that the broker refused is retried at the next look.
    """

    def __init__(self, fleet: Fleet, broker: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._broker, self._now = broker, now
        self._plan: dict[str, _Planned] = {}
        self._fleet: Fleet | None = None
        self.follow(fleet)

    def follow(self, fleet: Fleet) -> None:
        """Use the file's present schedules. An unchanged job keeps its next run."""
        if fleet is self._fleet:
            return
        self._fleet, before, now = fleet, self._plan, self._now()
        self._plan = {}
        for job in jobs(fleet):
            known = before.get(job.name)
            same = known is not None and _when(known.job) == _when(job)
            self._plan[job.name] = _Planned(job, known.due if known and same else self._next(job, now))

    def upcoming(self) -> tuple[tuple[Job, datetime | None], ...]:
        """Each job with its next run; None where none comes."""
        return tuple((planned.job, planned.due) for planned in self._plan.values())

    def look(self, tell: Tell) -> int:
        """Publish what is due; report each run; how many there were."""
        now, runs = self._now(), 0
        for planned in self._plan.values():
            job, due = planned.job, planned.due
            if due is None or due > now:
                continue
            late = f", late: it was due at {due.astimezone(_zone(job)):%Y-%m-%d %H:%M}" if now - due >= LATE else ""
            try:
                message_id = self._publish(job)
            except grpc.RpcError as error:
                why = error.details() if isinstance(error, grpc.Call) else type(error).__name__
                tell(f"schedule {job.schedule.name} isn't published, and is retried: {why}")
                continue
            runs += 1
            planned.due = self._next(job, now)
            tell(f"schedule {job.schedule.name} is published to {job.topic.id} as message {message_id}{late}")
        return runs

    def _next(self, job: Job, after: datetime) -> datetime | None:
        return cron.next_run(job.schedule.cron, _zone(job), after)

    def _publish(self, job: Job) -> str:
        """As the job's Pub/Sub target does: body and attributes, and no ordering key. The message's id."""
        assert self._fleet  # `follow` has set it
        request = _PublishRequest(topic=f"projects/{self._fleet.project}/topics/{job.topic.id}")
        request.messages.add(data=job.data, attributes=dict(job.attributes))
        with grpc.insecure_channel(self._broker) as channel:
            call = channel.unary_unary(
                "/google.pubsub.v1.Publisher/Publish", _PublishRequest.SerializeToString, _PublishResponse.FromString
            )
            answer = call(request, timeout=TIMEOUT_SECONDS)
        message_id: str = answer.message_ids[0]
        return message_id


@dataclass(slots=True)
class _Planned:
    """A job and its next run."""

    job: Job
    due: datetime | None


def _when(job: Job) -> tuple[str, str]:
    return job.schedule.cron, job.schedule.time_zone


def _zone(job: Job) -> ZoneInfo:
    try:
        return ZoneInfo(job.schedule.time_zone)
    except ZoneInfoNotFoundError as error:
        name = job.schedule.time_zone
        raise UsageError(f"this machine doesn't know the time zone {name}: install its package tzdata") from error

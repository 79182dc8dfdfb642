"""From a cron line to a backend: clock → broker → consumers → HTTP, with everything going wrong on the way."""

import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from http_kit import Backend, Call, Reply
from patience import PATIENCE_SECONDS

from shardctl.fleet import topology, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.fleet import LocalFleet
from shardctl.local.schedules import Clock
from shardctl.local.servers import BinaryMissingError
from shardctl.local.servers.process import wait_until

pytestmark = pytest.mark.slow

FLEET = """
fleet: jobs
project: my-project
image: example.com/consumer:1
routing: {slot_bits: 4}
message_types:
  tick:
    http:
      url: %s/tick
      timeout: 1s
      attempts: 20
      retry_minimum: 1s
      retry_maximum: 1s
      breaker: {failures: 4, open: 1s}
    routing_key: job
    on_poison: park
schedules:
  - {name: a, cron: "* * * * *", region: europe-west1, type: tick, body: {job: a}}
  - {name: b, cron: "*/2 * * * *", time_zone: Asia/Kathmandu, region: europe-west1, type: tick, body: {job: b}}
  - {name: c, cron: "*/3 * * * *", region: europe-west1, type: tick, body: {job: c}}
subscription: {retry_minimum: 0s, retry_maximum: 0s, max_delivery_attempts: 100}
consumer: {lease: 10s, lock_ttl: 2s, batch_max_rows: 8}
shards: [{name: all, slots: 0-15}]
local: {database: sqlite, replicas: 1}
"""
MINUTES = 12
RUNS = MINUTES + MINUTES // 2 + MINUTES // 3


class Moody:
    """A backend that goes through its moods by the number of the call, and is well after that. It honours Idempotency-Key."""

    MOODS = (
        Reply(500),
        Reply(200, hang=1.5),  # does what it was asked, and answers too late
        Reply(503, {"Retry-After": "1"}),
        Reply(302, {"Location": "http://localhost:1/stolen"}),
        Reply(None),
        Reply(429, {"Retry-After": "0"}),
    )

    def __init__(self) -> None:
        self.calls, self.effects = defaultdict(list), Counter()
        self.well = threading.Event()
        self._count, self._lock = 0, threading.Lock()

    def __call__(self, call: Call) -> Reply:
        with self._lock:
            self._count += 1
            if self.well.is_set():
                reply = Reply(200)
            elif self._count > 16:
                reply = Reply(500)  # an outage, until it is well
            else:
                reply = (*self.MOODS, Reply(200))[self._count % 7]
            self.calls[call.key].append(call)
            if reply.status == 200:
                self.effects[call.key] = 1  # however often: that is what the key is for
            return reply


class Wall:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def moody():
    moody = Moody()
    with Backend(moody) as backend:
        moody.url = backend.url
        yield moody


@pytest.fixture
def local(moody, tmp_path):
    try:
        with LocalFleet(fleet_from(yamlfile.parse(FLEET % moody.url, "shards.yaml")), tmp_path) as local:
            yield local
    except BinaryMissingError as missing:
        pytest.skip(str(missing))


def unacked(local):
    (count,) = local.backlog().values()
    return count


@pytest.mark.proof
def test_every_run_has_its_effect_once_whatever_fails(moody, local):
    wall, lines = Wall(), []
    clock = Clock(local.spec, local.broker.host, wall)
    for _ in range(MINUTES):
        wall.time += timedelta(minutes=1)
        clock.look(lines.append)
    assert len(lines) == RUNS
    assert unacked(local) == RUNS, "nothing has been acked before its call succeeded"

    (consumer,) = local.consumers
    assert wait_until(lambda: moody.effects, PATIENCE_SECONDS)
    consumer.kill()
    assert unacked(local) >= RUNS - len(moody.effects)
    consumer.start()
    assert wait_until(lambda: consumer.metrics().get("shardctl_http_breaker_open", 0) == 1, PATIENCE_SECONDS)
    assert unacked(local) >= RUNS - len(moody.effects), "acked although its call has not succeeded"
    moody.well.set()
    local.wait_drained(40)

    assert len(moody.effects) == RUNS
    assert max(map(len, moody.calls.values())) > 1
    assert {call.path for calls in moody.calls.values() for call in calls} == {"/tick"}
    per_job = Counter(calls[0].headers["x-shardctl-key"] for calls in moody.calls.values())
    assert per_job == {"a": MINUTES, "b": MINUTES // 2, "c": MINUTES // 3}
    for calls in moody.calls.values():
        assert len({(call.method, call.body, call.headers["x-shardctl-message-id"]) for call in calls}) == 1
    assert local.subscriptions()[topology.dead_letter_subscription(local.spec)]["undelivered"] == 0
    assert consumer.metrics()["shardctl_messages_parked_total"] == 0


@pytest.mark.proof
def test_a_late_clock_catches_up_on_one_run_alone_and_a_broker_that_is_away_loses_none(moody, local):
    moody.well.set()
    wall, lines = Wall(), []
    clock = Clock(local.spec, local.broker.host, wall)
    assert clock.look(lines.append) == 0
    wall.time += timedelta(hours=5)
    assert clock.look(lines.append) == 3
    assert clock.look(lines.append) == 0
    assert "late: it was due at 2026-03-01 12:00" in lines[0]
    assert {job.schedule.name: due for job, due in clock.upcoming()}["a"] == wall.time + timedelta(seconds=30)
    local.wait_drained(20)
    assert len(moody.effects) == 3

    wall.time += timedelta(minutes=1)
    away = Clock(local.spec, "127.0.0.1:1", wall)
    wall.time += timedelta(minutes=1)
    for _ in range(2):
        lines.clear()
        assert away.look(lines.append) == 0
        assert "is retried" in lines[0]

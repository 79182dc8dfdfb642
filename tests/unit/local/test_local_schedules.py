"""The local clock, without a broker: which runs it plans."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.schedules import Clock

FLEET = """
fleet: jobs
project: my-project
image: example.com/consumer:1
message_types:
  tick: {http: {url: "http://localhost/"}, routing_key: job}
schedules:
  - {name: a, cron: "* * * * *", region: europe-west1, type: tick, body: {job: a}}
  - {name: b, cron: "30 2 * * *", time_zone: Europe/Berlin, region: europe-west1, type: tick, body: {job: b}}
  - {name: c, cron: "*/3 * * * *", region: europe-west1, type: tick, body: {job: c}}
shards: [{name: all, slots: 0-1023}]
"""


def fleet(text=FLEET):
    return fleet_from(yamlfile.parse(text, "shards.yaml"))


def planned(clock):
    return {job.schedule.name: due for job, due in clock.upcoming()}


def test_jobs_that_stay_keep_their_runs_when_the_file_changes():
    now = [datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)]
    clock = Clock(fleet(), "127.0.0.1:1", lambda: now[0])
    before = planned(clock)
    assert before["b"] == datetime(2026, 3, 2, 1, 30, tzinfo=UTC)
    now[0] += timedelta(minutes=2)  # a run of `a` and of `c` is due, and not yet published
    changed = FLEET.replace('cron: "*/3 * * * *"', 'cron: "0 0 * * *"').replace(
        "body: {job: a}", "body: {job: a, n: 1}"
    )
    clock.follow(fleet(changed))
    assert planned(clock) == {**before, "c": datetime(2026, 3, 2, tzinfo=UTC)}
    (job, _), *_ = clock.upcoming()
    assert b'"n":1' in job.data


def test_what_is_gone_from_the_file_runs_no_more():
    clock = Clock(fleet(), "127.0.0.1:1")
    clock.follow(fleet("\n".join(line for line in FLEET.splitlines() if "name: a, cron" not in line)))
    assert planned(clock).keys() == {"b", "c"}

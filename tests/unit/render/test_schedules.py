from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
import yaml

from shardctl.fleet import topology
from shardctl.fleet.cron import fault as cron_fault
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError
from shardctl.fleet.yamlfile import parse
from shardctl.render import documents
from tests.unit.render.cloud_kit import FLEET, fleet_of

TWIN = """schedules:
  - {name: nightly, cron: 0 0 1 1 *, region: us-east1, type: order, body: {order_id: a}}
"""
CONFIG_CONNECTOR = FLEET.replace("provisioner: terraform", "provisioner: config-connector")


def jobs(text: str = CONFIG_CONNECTOR) -> list[dict[str, Any]]:
    return [yaml.safe_load(document.text) for document in documents(fleet_of(text), kinds=["CloudSchedulerJob"])]


def test_a_schedule_publishes_its_write_to_its_slot() -> None:
    (job,) = jobs()
    body = job["spec"]
    target = body.pop("pubsubTarget")
    assert body == {
        "resourceID": "orders-nightly",
        "location": "europe-west1",
        "schedule": "30 4 * * mon-fri",
        "timeZone": "Europe/Berlin",
    }
    assert target["topicRef"] == {"name": "data-writes"}
    assert target["attributes"] == {
        "slot": digits_of(slot_of("sweep", 4), 4),
        "partition_key": "sweep",
        "message_type": "order",
        "operation": "upsert",
    }
    assert json.loads(b64decode(target["data"])) == {"order_id": "sweep", "note": 'it\'s ${time} %{if} "now"'}


def test_it_goes_to_the_topic_of_its_slot() -> None:
    text = CONFIG_CONNECTOR.replace("slot_bits: 4", "slot_bits: 4, topic_bits: 2")
    fleet = fleet_of(text)
    (job,) = jobs(text)
    assert job["spec"]["pubsubTarget"]["topicRef"]["name"] == topology.topic_of(fleet, slot_of("sweep", 4)).id


def test_key_and_operation_can_be_given() -> None:
    text = CONFIG_CONNECTOR.replace("    type: order\n", "    type: order\n    key: other\n    operation: delete\n")
    text = text.replace("order_id: sweep", "order_id: other")
    (job,) = jobs(text)
    attributes = job["spec"]["pubsubTarget"]["attributes"]
    assert (attributes["partition_key"], attributes["operation"]) == ("other", "delete")
    assert attributes["slot"] == digits_of(slot_of("other", 4), 4)


def test_attributes_have_the_fleets_names_and_no_timestamp() -> None:
    (job,) = jobs(CONFIG_CONNECTOR.replace("slot_bits: 4", "slot_bits: 4, attributes: cloudevents"))
    assert set(job["spec"]["pubsubTarget"]["attributes"]) == {"slot", "ce-partitionkey", "ce-type", "operation"}


def test_a_schedule_is_the_fleets_and_not_a_shards() -> None:
    assert not [d for d in documents(fleet_of(CONFIG_CONNECTOR), shards=["s0"]) if d.kind == "CloudSchedulerJob"]
    (document,) = documents(fleet_of(CONFIG_CONNECTOR), kinds=["CloudSchedulerJob"])
    assert (document.path, document.shard) == ("fleet/cloudschedulerjob-nightly.yaml", None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: order", "type: parcel", "schedules[0].type: 'parcel' isn't among message_types. Fix: declare it, or use"),
        ("order_id: sweep", "id: sweep", "schedules[0].body: the body's 'order_id' gives no routing key"),
        ("    type: order\n", "    type: order\n    key: other\n", "'sweep', and the routing key is 'other'"),
        ('note: "it', 'nota: "it', "schedules[0].body: the body has 'nota', which isn't a column"),
        ("30 4 * * mon-fri", "60 4 * * *", "schedules[0].cron: the minute is '60', and runs from 0 to 59."),
        ("30 4 * * mon-fri", "0 4 * *", "isn't a cron line of five fields"),
        ("Europe/Berlin", "Europe/Bärlin", "isn't a time zone's name"),
        ("Europe/Berlin", "Europe/Berln", "schedules[0].time_zone: there is no time zone 'Europe/Berln'"),
        ("europe-west1", "Paris", "isn't a Google Cloud region"),
        ("    type: order\n", "    type: order\n    operation: insert\n", "the row exists, and the insert fails"),
        ("schedules:\n", TWIN, "schedules[1].name: 'nightly' is also the name of schedules[0]"),
    ],
)  # fmt: skip
def test_a_schedule_that_could_not_land_is_refused(old: str, new: str, message: str) -> None:
    assert old in FLEET
    with pytest.raises(SpecError) as error:
        fleet_of(FLEET.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "cron",
    ["* * * * *", "*/5 0-23/2 1,15 jan-DEC 0-7", "0 9-17 * * MON,wed,5", "59 23 31 12 *", "0 0 * * sun"],
)
def test_cron_lines_that_cloud_scheduler_takes(cron: str) -> None:
    assert cron_fault(cron) is None


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day of week"),
        ("* * * * dim", "day of week"),
        ("*/0 * * * *", "step"),
        ("*/ * * * *", "step"),
        ("5-1 * * * *", "backwards"),
        ("1-2-3 * * * *", "minute"),
        ("1,, * * * *", "minute"),
    ],
)
def test_cron_lines_that_it_doesnt(cron: str, message: str) -> None:
    assert message in (cron_fault(cron) or "")


def test_a_schedule_of_a_type_with_a_backend_needs_a_routing_key_and_no_operation() -> None:
    text = """
fleet: jobs
project: my-project
image: example.com/consumer:1
message_types:
  tick: {{http: {{url: "https://a.example.com/"}}, routing_key: job}}
schedules:
  - {{name: a, cron: "0 4 * * *", region: europe-west1, type: tick, {more}}}
shards: [{{name: all, slots: 0-1023}}]
"""
    assert fleet_from(parse(text.format(more="body: {job: nightly}")))
    assert fleet_from(parse(text.format(more="key: nightly, operation: insert, body: {anything: [1]}")))
    with pytest.raises(SpecError, match=r"schedules\[0\].body: the body's 'job' gives no routing key"):
        fleet_from(parse(text.format(more="body: {n: 1}")))
    with pytest.raises(SpecError, match=r"schedules\[0\].cron: no month"):
        fleet_from(parse(text.format(more="body: {job: a}").replace("0 4 * * *", "0 4 31 2 *")))

"""Clients ask a real gateway what became of their writes, in a real database that a real consumer writes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from hashlib import sha256

import pytest
from gateway_process import Broker, Gateway, until
from patience import PATIENCE_SECONDS
from sqlalchemy import make_url

from shardctl.fleet import topology
from shardctl.fleet.load import fleet_from
from shardctl.fleet.shardconfig import slice_of
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers.process import free_port
from shardctl.provision import provision_database

pytestmark = pytest.mark.slow
FILE = """
fleet: shop
project: test-project
image: example.com/shardctl:1.0.0
topic: shop-writes
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, status: text, revision: bigint}}
  item: {table: items, key: id, columns: {id: bigint}}
  audit: {table: audits, key: id, columns: {id: text}}
  daily: {table: dailies, key: id, columns: {id: text, day: number}, time_bucket: {field: day, unit: day}}
shards:
  - {name: s0, slots: 0-15}
gateway:
  outcomes: {max_wait: 30s}
  auth:
    kind: keys
    secret: {name: keys}
    clients: {shop: {types: [order]}, erp: {}}
"""
KEYS = {name: f"key-of-{name}" for name in ("shop", "erp")}


@contextmanager
def serving(tmp_path, url, file=FILE):
    fleet = fleet_from(parse(file, "test"))
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name} {sha256(key.encode()).hexdigest()}\n" for name, key in KEYS.items()))
    with (
        Broker(tmp_path, fleet) as broker,
        Gateway(tmp_path, fleet, broker.host, "--keys", str(keys), SHARDCTL_DATABASE_URL_S0=url) as gateway,
    ):
        yield fleet, broker, gateway


@contextmanager
def consuming(tmp_path, fleet, broker, database_url, redis_url):
    (shard,) = fleet.shards
    file = tmp_path / "shard.json"
    file.write_text(slice_of(fleet, shard).model_dump_json())
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "PORT": str(free_port()), "HOST": "127.0.0.1"}
    environment["PUBSUB_EMULATOR_HOST"] = broker.host
    with (tmp_path / "consumer.log").open("wb") as errors:
        command = [sys.executable, "-m", "consumer", "--config", str(file)]
        consumer = subprocess.Popen(command, env=os.environ | environment, stderr=errors)
    try:
        yield
    finally:
        consumer.terminate()
        consumer.wait(PATIENCE_SECONDS)


def of(client, **more):
    return {"Authorization": f"Bearer {KEYS[client]}", **more}


def test_a_client_reads_its_own_write(tmp_path, database_url, redis_url):
    with serving(tmp_path, database_url) as (fleet, broker, gateway):
        provision_database(fleet, fleet.shards[0], database_url)
        (subscription,) = topology.subscriptions(fleet, fleet.shards[0])
        broker.subscribe(subscription.id, fleet)
        ahead = gateway.write("order", {"order_id": "a/ü"}, key="i 1?", headers=of("shop", Prefer="wait=0"))
        assert (ahead.status_code, ahead.json()["outcome"]) == (202, "not_seen")
        assert ahead.headers["location"] == "/v1/writes/order/a%2F%C3%BC/i%201%3F"
        with consuming(tmp_path, fleet, broker, database_url, redis_url):
            wait = of("shop", Prefer="respond-async, wait=1000000000")

            def applied():  # a consumer may take longer to start than any client waits
                answer = gateway.http.get(ahead.headers["location"], headers=wait)
                assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=30")
                return answer.json()["outcome"] == "applied"

            until(applied, what="the write ahead")
            for key in ("i-1", None):
                answer = gateway.write("order", {"order_id": "o-1", "status": "paid"}, key=key, headers=wait)
                assert (answer.status_code, answer.json()["outcome"]) == (200, "applied")
                asked = gateway.http.get(answer.headers["location"], headers=of("shop"))
                assert asked.json() == {"outcome": "applied", "slot": answer.json()["slot"], "shard": "s0"}
            unheld = gateway.http.get("/v1/writes/order/o-1/i-1", headers=of("erp"))
            assert unheld.json()["outcome"] == "not_seen", "another client's write"
            example = subprocess.run(
                [sys.executable, "-m", "examples.waiting", str(_file(tmp_path))],
                env=os.environ | {"PUBSUB_EMULATOR_HOST": broker.host, "SHARDCTL_DATABASE_URL_S0": _url(database_url)},
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
            assert example.stdout == "applied; the order is paid\n", example.stderr
        assert gateway.errors() == []


def _file(folder):
    file = folder / "shards.yaml"
    file.write_text(FILE)
    return file


def _url(database_url):
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.parametrize("place", ["no such folder", pytest.param("no tables", marks=pytest.mark.proof)])
def test_databases_that_are_down_leave_it_unknown_and_writes_are_taken(tmp_path, place):
    url = f"sqlite:///{tmp_path}/nowhere/s0.db" if place == "no such folder" else f"sqlite:///{tmp_path}/empty.db"
    with serving(tmp_path, url) as (_, broker, gateway):
        answer = gateway.write("order", {"order_id": "o-1"}, key="i-1", headers=of("shop", Prefer="wait=1"))
        assert (answer.status_code, answer.json()["outcome"]) == (202, "unknown")
        assert "nowhere" not in answer.text
        assert len(broker.pulled(1)) == 1
        asked = gateway.http.get(answer.headers["location"], headers=of("shop"))
        assert asked.status_code == 503
        assert int(asked.headers["retry-after"]) >= 1


ASKED = {
    "no-key": ("/v1/writes/order/k/i", {}, 401),
    "type-not-allowed": ("/v1/writes/audit/k/i", of("shop"), 403),
    "no-such-type": ("/v1/writes/ordr/k/i", of("erp"), 404),
    "too-few-parts": ("/v1/writes/order/k", of("erp"), 404),
    "bad-percent": ("/v1/writes/order/%FF/i", of("erp"), 400),
    "control": ("/v1/writes/order/k/%00", of("erp"), 400),
    "empty": ("/v1/writes/order//i", of("erp"), 400),
    "spelling": ("/v1/writes/item/7/i", of("erp"), 200),
    "another-spelling": ("/v1/writes/item/007/i", of("erp"), 404),
    "not-by-time": ("/v1/writes/order/k/i?at=2026-01-01T00:00:00Z", of("erp"), 400),
    "by-time": ("/v1/writes/daily/k/i?at=2026-01-01T00:00:00Z", of("erp"), 200),
    "by-time-elsewhere": ("/v1/writes/daily/k/i?at=2026-01-01T05:30:00.25%2B05:30", of("erp"), 200),
    "no-time": ("/v1/writes/daily/k/i", of("erp"), 400),
    "seconds": ("/v1/writes/daily/k/i?at=1767225600", of("erp"), 400),
    "day": ("/v1/writes/daily/k/i?at=2026-01-01", of("erp"), 400),
    "no-offset": ("/v1/writes/daily/k/i?at=2026-01-01T00:00:00", of("erp"), 400),
    "no-such-day": ("/v1/writes/daily/k/i?at=2026-02-30T00:00:00Z", of("erp"), 400),
    "before-time": ("/v1/writes/daily/k/i?at=0001-01-01T00:00:00%2B01:00", of("erp"), 400),
    "unknown-parameter": ("/v1/writes/order/k/i?wait=3", of("erp"), 400),
    "negative-wait": ("/v1/writes/order/k/i", of("erp", Prefer="wait=-1"), 200),
    "wait-in-floats": ("/v1/writes/order/k/i", of("erp", Prefer="wait=1e9"), 200),
}


def test_what_a_client_may_not_ask_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/s0.db"
    with serving(tmp_path, url) as (fleet, _, gateway):
        provision_database(fleet, fleet.shards[0], url)
        answers = {name: gateway.http.get(path, headers=headers) for name, (path, headers, _) in ASKED.items()}
        statuses = {name: answer.status_code for name, answer in answers.items()}
        assert statuses == {name: status for name, (_, _, status) in ASKED.items()}
        assert not any("preference-applied" in answer.headers for answer in answers.values())
        by_time = gateway.write("daily", {"id": "k", "day": 1767225600}, key="i", headers=of("erp"))
        assert by_time.headers["location"] == "/v1/writes/daily/k/i?at=2026-01-01T00%3A00%3A00Z"
        assert gateway.http.get(by_time.headers["location"], headers=of("erp")).json()["outcome"] == "not_seen"
        refused = gateway.http.put("/v1/writes/order/k/i", headers=of("erp"))
        assert (refused.status_code, {*refused.headers["allow"].split(", ")}) == (405, {"GET", "HEAD"})
        assert gateway.errors() == []

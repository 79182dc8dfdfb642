"""A fleet on a machine that is busy with something else: late is not dead, slow is not stuck."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
import yaml
from fleets import fleet
from migrate_kit import FILE, Shop

from shardctl.broker import admin
from shardctl.errors import ShardctlError
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local import fleet as localfleet
from shardctl.local.fleet import LocalFleet, NotDrainedError
from shardctl.shard import database, revisions
from shardctl.shard.schema import rebalances

pytestmark = pytest.mark.slow


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(localfleet, "ANSWER_SECONDS", 0.2)
    made = LocalFleet(fleet(["0-511", "512-1023"]), tmp_path)
    made.broker.start()
    yield made
    made.broker.kill()


def test_a_broker_that_answers_late_is_asked_again(local, monkeypatch):
    monkeypatch.setattr(localfleet, "ANSWER_TRIES", 10_000)
    os.kill(local.broker.pid, signal.SIGSTOP)
    asked = threading.Event()
    stats = admin.stats

    def late(*arguments, **options):
        try:
            return stats(*arguments, **options)
        except BaseException:
            asked.set()
            os.kill(local.broker.pid, signal.SIGCONT)
            raise

    monkeypatch.setattr(localfleet.brokers, "stats", late)
    assert local.subscriptions() == {}
    assert asked.is_set()


def test_a_broker_that_stands_still_is_given_up(local, monkeypatch):
    monkeypatch.setattr(localfleet, "ANSWER_TRIES", 2)
    os.kill(local.broker.pid, signal.SIGSTOP)
    with pytest.raises(ShardctlError, match=r"the broker has not answered for 0\.4 s; its log: "):
        local.subscriptions()
    os.kill(local.broker.pid, signal.SIGCONT)


def test_a_broker_that_has_ended_is_not_waited_for(local):
    local.broker.kill()
    with pytest.raises(ShardctlError, match="the broker has ended; its log: "):
        local.subscriptions()


def test_draining_takes_as_long_as_messages_are_settled(local, monkeypatch):
    backlogs = iter([{"orders-s0": left} for left in (3, 2, 2, 1, 0)])
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(local, "backlog", lambda: next(backlogs))
    monkeypatch.setattr(localfleet.time, "monotonic", lambda: next(clock))
    local.wait_drained(10)
    assert next(backlogs, None) is None


def test_a_backlog_that_stays_is_an_error(local, monkeypatch):
    monkeypatch.setattr(local, "backlog", lambda: {"orders-s0": 2, "orders-s1": 0})
    with pytest.raises(
        NotDrainedError, match=r"no message was settled for 0\.1 s, and there is a backlog: orders-s0 2\. "
    ):
        local.wait_drained(0.1)


def test_a_pending_revision_keeps_no_file_of_an_open_rebalance_from_being_applied(tmp_path):
    """The file is what brings the rebalance to its end, and the next one what is pending."""
    (tmp_path / "sqlite").mkdir()
    shop = Shop(tmp_path, {name: f"sqlite:///{tmp_path}/sqlite/{name}.db" for name in ("s0", "s1")})
    shop.add("op.add_column('orders', sa.Column('note', sa.Text()))")
    data = yaml.safe_load(FILE % "") | {"local": {"database": "sqlite"}}
    both = fleet_from(yamlfile.parse(yaml.safe_dump(data), "shards.yaml"))
    data["shards"] = [{"name": "s0", "slots": "0-15"}]
    local = LocalFleet(fleet_from(yamlfile.parse(yaml.safe_dump(data), "shards.yaml")), tmp_path, file=shop.file)
    with database.writing(shop.engines["s1"]) as connection:
        plan = json.dumps({"shard": "s1", "shards": [{"name": "s0"}, {"name": "s1"}]})
        connection.execute(rebalances.insert().values(id="x", state="open", plan=plan))
    assert local.prepare(both) == ("s1",)
    with database.snapshot(shop.engines["s1"]) as connection:
        assert not revisions.done(revisions.read(connection))
    shop.close()

"""docs/howto.md, "Restore a shard from a backup": what the backup lacks comes again from Pub/Sub, and nothing twice."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.cloud import pubsub_v1
from sqlalchemy.engine import make_url

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from tests.e2e.conftest import FLEET

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet():
    text = FLEET.replace("subscription: {", "subscription: {retain_acked: true, ") + "local: {database: sqlite}\n"
    return fleet_from(yamlfile.parse(text, "shards.yaml"))


@pytest.mark.proof
@pytest.mark.parametrize("replicas", [1])
def test_a_backup_and_a_seek_bring_a_shard_back(local, scene, monkeypatch):
    (consumer,) = local.replicas["s0"]
    load = scene(4_000, writes_per_second=1_500)
    load.until_published(1_500)
    began = datetime.now(UTC)
    backup(path_of(local), local.directory / "backup.db")  # while writes go on
    load.verify()
    lost = applied(path_of(local)) - applied(local.directory / "backup.db")
    assert lost > 500

    consumer.stop()
    backup(local.directory / "backup.db", path_of(local))
    assert applied(path_of(local)) == applied(local.directory / "backup.db")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", local.broker.host)
    with pubsub_v1.SubscriberClient() as subscriber:
        for name in local.subscription_ids(local.spec.shard("s0")):
            path = subscriber.subscription_path(local.spec.project, name)
            subscriber.seek(request={"subscription": path, "time": began - timedelta(seconds=60)})
    consumer.start()
    load.verify()
    assert consumer.metrics()["shardctl_messages_applied_total"] == lost
    assert consumer.metrics()["shardctl_messages_duplicate_total"] > 0


def path_of(local) -> Path:
    return Path(make_url(local.databases["s0"]).database)


def backup(source: Path, destination: Path) -> None:
    with sqlite3.connect(source) as out, sqlite3.connect(destination) as into:
        out.backup(into)


def applied(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT count(*) FROM shardctl_inbox").fetchone()[0]

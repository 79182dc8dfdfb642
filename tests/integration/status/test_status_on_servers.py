"""What `shardctl status` asks, asked of the real servers: PostgreSQL, MariaDB, and a Prometheus that scrapes consumers."""

from datetime import timedelta

import pytest
from patience import PATIENCE_SECONDS
from prometheus_kit import PrometheusServer
from sqlalchemy import delete, insert, update

from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.servers.process import wait_until
from shardctl.provision import provision_database
from shardctl.shard import schema
from shardctl.shard.database import connect, writing
from shardctl.shard.membership import Membership
from shardctl.shard.schema import LaneState
from shardctl.status import history
from shardctl.status.databases import Databases, heat
from shardctl.status.prometheus import Prometheus, PrometheusError
from shardctl.wire import identity

pytestmark = pytest.mark.slow

OWN = Membership("asked", "s0")
FLEET = """
fleet: asked
project: my-project
image: example.com/consumer:1
routing: {slot_bits: 4}
message_types: {a: {table: a_rows, key: id, columns: {id: text}}}
shards: [{name: s0, slots: 0-15}]
"""


@pytest.fixture
def fleet():
    return fleet_from(yamlfile.parse(FLEET, "shards.yaml"))


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request):
    if request.param == "postgresql":
        yield request.getfixturevalue("database_url")
        return
    server = request.getfixturevalue("mariadb_server")
    server.drop_database("asked")
    yield server.create_database("asked")
    server.drop_database("asked")


def test_a_database_reports_its_lanes_keys_and_replicas(fleet, url):
    databases = Databases()
    assert databases.look(OWN, url).known.empty
    provision_database(fleet, fleet.shards[0], url)
    engine, slots = connect(url), schema.lanes
    parked = {"message_type": "a", "partition_key": "K", "reason": "bad", "detail": "", "released": False}
    with writing(engine) as connection:
        connection.execute(insert(schema.replicas).values(replica="r0", generations="1,2"))
        connection.execute(insert(schema.parked_keys), [parked | {"slot": 3}, parked | {"slot": 4}])
        connection.execute(update(slots).where(slots.c.slot == 4).values(state=LaneState.LEFT))
        row = {"slot": 5, "key_hash": 1, "published": schema.published_now(connection)}
        rows = [row | {"identity": identity.of_message(key)} for key in "xyz"]
        connection.execute(insert(schema.inbox), rows)
    facts = databases.look(OWN, url)
    assert (facts.parked_keys, facts.parked_messages) == (1, 0)
    assert len(facts.known.lanes) == 16
    assert set(facts.known.readers) == {1, 2}
    assert facts.known.readers[1] < timedelta(seconds=60)
    assert facts.silent_seconds["r0"] < 60
    assert heat(OWN, url) == {5: 3 / 120}
    with writing(engine) as connection:
        connection.execute(delete(slots).where(slots.c.slot == 4))
        connection.execute(update(schema.fence).values(version=schema.fence.c.version + 1))
    assert len(databases.look(OWN, url).known.lanes) == 15
    databases.close()
    engine.dispose()


def last(past, name):
    """A figure's newest value of the one shard."""
    (figure,) = (figure for figure in past.figures if figure.name == name)
    return figure.values.get("s0", (None,))[-1]


def test_a_prometheus_that_scrapes_consumers_is_understood(fleet, tmp_path):
    metrics = [Metrics(), Metrics()]
    consumers = [Health("127.0.0.1", 0, consumer_metrics, lambda: None) for consumer_metrics in metrics]
    for consumer_metrics in metrics:
        consumer_metrics.database_up.set(1)
    metrics[0].ready.set(1)
    metrics[1].redis_degraded.set(1)
    metrics[0].dead_lettered.labels("bad_value").inc(2)
    server = PrometheusServer(tmp_path, "asked", {f"127.0.0.1:{consumer.port}": "s0" for consumer in consumers})
    try:
        server.start()
        with Prometheus(f"http://127.0.0.1:{server.port}") as prometheus:

            def rate():
                metrics[0].applied.inc(10)
                metrics[0].batch_rows.observe(5)
                try:
                    return prometheus.work(fleet)["s0"].writes_per_second
                except PrometheusError:
                    return None

            assert wait_until(rate, PATIENCE_SECONDS)
            assert wait_until(lambda: prometheus.work(fleet)["s0"].rows_a_batch, PATIENCE_SECONDS)
            work = prometheus.work(fleet)["s0"]
            metrics[0].publish_to_commit_seconds.observe(0.2)
            assert wait_until(lambda: last(history.ask(prometheus, fleet), history.LAG), PATIENCE_SECONDS)
            past = history.ask(prometheus, fleet)
        assert last(past, history.WRITES) > 0
        assert last(past, history.DEAD) == 2
        assert past.figures[1].values["s0"][0] is None, "the server wasn't there an hour ago"
        assert "99th percentile" in past.figures[0].title, "nothing exports Pub/Sub's own figures"
        assert work.applied > 10
        assert (work.replicas, work.ready, work.dead_lettered) == (2, 1, 2)
        assert work.rows_a_batch == pytest.approx(5)  # a quotient of two rates
        assert work.troubles == (
            "1 of 2 replicas aren't ready",
            "1 of 2 replicas work without Redis: they may repeat each other's work",
        )
    finally:
        server.stop()
        for consumer in consumers:
            consumer.close()

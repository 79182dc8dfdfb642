"""Replicas as processes, one of which leads: it is asked to stop, killed, and stopped in mid-air."""

from __future__ import annotations

import json
import signal
import ssl
from datetime import timedelta

import pytest
import trustme
from consumer_kit import config
from consumerprocess_kit import Consumer, until
from lease_kit import LeaseApi, mount
from patience import PATIENCE_SECONDS

from shardctl.fleet.settings.leader import Leader

pytestmark = pytest.mark.slow

PATIENT = Leader(
    kind="redis",
    lease_duration=timedelta(seconds=90),
    renew_deadline=timedelta(seconds=60),
    retry_period=timedelta(seconds=1),
)
QUICK = Leader(
    kind="kubernetes",
    lease_duration=timedelta(seconds=8),  # a busy machine may hold a replica up for seconds
    renew_deadline=timedelta(seconds=6),
    retry_period=timedelta(seconds=1),
)


@pytest.fixture
def api():
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with LeaseApi(tls) as server:
        server.authority = authority.cert_pem.bytes()
        yield server


@pytest.fixture
def start(tmp_path, redis_url, broker, shard):
    started = []

    def start(*names, leader, environment=(), **consumer):
        settings = {
            "DATABASE_URL": shard.url.render_as_string(hide_password=False),
            "REDIS_URL": redis_url,
            "PUBSUB_EMULATOR_HOST": broker.broker.host,
        } | dict(environment)
        made = config(lease=timedelta(seconds=10), **consumer).model_copy(update={"leader": leader})
        started.extend(Consumer(tmp_path, made, settings | {"POD_NAME": name}, name) for name in names)
        for replica in started:
            until(
                lambda replica=replica: replica.get("/ready")[0] == 200 or replica.process.poll() is not None,
                what="ready",
            )
            assert replica.process.poll() is None, replica.log()
        return started

    yield start
    for replica in started:
        if replica.process.poll() is None:
            replica.process.send_signal(signal.SIGCONT)
            replica.process.kill()
            replica.process.wait()


def leaders(consumers):
    return [replica for replica in consumers if replica.metric("shardctl_leader") == 1]


def leader_of(consumers, seconds=PATIENCE_SECONDS):
    until(lambda: leaders(consumers), seconds, "a leader")
    [leader] = leaders(consumers)
    return leader


def applied(consumer):
    return consumer.metric("shardctl_messages_applied_total")


def actions(consumer):
    return [json.loads(line).get("action") for line in consumer.log().splitlines()]


def names(shard):
    return dict(shard.rows("SELECT customer_id, name FROM customers"))


def test_a_leader_that_must_stop_hands_over_at_once(start, broker, shard):
    """Long before its lease would have ended."""
    consumers = start("a", "b", leader=PATIENT)
    first = leader_of(consumers)
    for number in range(30):
        broker.publish({"customer_id": str(number), "name": "x"}, str(number))
    until(lambda: len(names(shard)) == 30, what="all rows")
    [second] = [replica for replica in consumers if replica is not first]
    assert (applied(first), applied(second)) == (30, 0)  # a standby is ready, and takes nothing
    assert first.terminate() == 0
    assert "lease_released" in actions(first)
    assert leader_of([second], 10) is second
    broker.publish({"customer_id": "1", "name": "y"}, "1")
    until(lambda: names(shard)["1"] == "y", what="the write by the second")
    assert shard.rows("SELECT term FROM shardctl_leader") == [(2,)]


@pytest.mark.proof
def test_a_leader_killed_or_stopped_in_mid_air_is_followed_and_cant_write_when_it_wakes(
    start, broker, shard, api, tmp_path
):
    account = mount(tmp_path / "account", authority=api.authority)
    environment = {
        "SERVICE_ACCOUNT_DIR": str(account),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(api.port),
    }
    consumers = start("a", "b", "c", leader=QUICK, environment=environment, batch_max_age_ms=10_000)
    killed = leader_of(consumers)
    assert api.lease()["holderIdentity"].startswith(f"{killed.log_file.stem}_")
    killed.process.kill()
    killed.process.wait()
    rest = [replica for replica in consumers if replica is not killed]
    sleeper = leader_of(rest)
    assert api.lease()["leaseTransitions"] == 1
    broker.publish({"customer_id": "0", "name": "x"}, "0")
    until(lambda: names(shard) == {"0": "x"}, what="a first write, behind which the next one waits for others")
    broker.publish({"customer_id": "1", "name": "x"})
    until(lambda: sleeper.metric("shardctl_messages_received_total") == 2, what="a message received")
    sleeper.process.send_signal(signal.SIGSTOP)
    [third] = [replica for replica in rest if replica is not sleeper]
    until(lambda: third.metric("shardctl_leader") == 1, what="another leader")
    sleeper.process.send_signal(signal.SIGCONT)
    until(lambda: "not_leader" in actions(sleeper), what="a write refused")
    until(lambda: names(shard) == {"0": "x", "1": "x"}, what="the write by the new leader")
    assert (applied(sleeper), applied(third)) == (1, 1)
    assert sleeper.process.poll() is None  # it stands by
    until(lambda: sleeper.get("/ready")[0] == 200 and sleeper.metric("shardctl_leader") == 0, what="a standby")
    assert shard.rows("SELECT term FROM shardctl_leader") == [(3,)]
    assert third.terminate() == 0
    assert leader_of([sleeper], 10) is sleeper
    assert sleeper.metric("shardctl_leader_transitions_total") == 2

"""`simulate` against a fleet that really runs: shares of the load, and the lag after an outage."""

import random
import time

import pytest
from patience import PATIENCE_SECONDS

from shardctl.capacity import Load, Speed, simulate
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.feed import Feed
from shardctl.local.load import Publication
from shardctl.local.servers.process import wait_until
from shardctl.wire.message import Write
from tests.e2e.conftest import FLEET

pytestmark = pytest.mark.slow

RATE, OUTAGE_SECONDS, KEYS, SKEW = 200, 6.0, 2_000, 0.9
SPEED = 200  # of a replica, since `rate_limit` says so
# A call to Redis that a pause falls into must not count as an outage: each replica would then pass a burst of its own.
CONSUMER = f"{{lease: 15s, rate_limit: {SPEED}, redis_timeout_ms: 60000}}"
FAST_FLEET = FLEET.replace("consumer: {lease: 10s}", f"consumer: {CONSUMER}\nautoscaling: {{kind: none, min: 1}}")


@pytest.fixture
def fleet():
    return fleet_from(yamlfile.parse(FAST_FLEET, "shards.yaml"))


def writes():
    draw = random.Random(11)
    weights = [1 / (n + 1) ** SKEW for n in range(KEYS)]
    while True:
        for key in draw.choices(range(KEYS), weights, k=1_000):
            yield Publication(Write("customer", {"customer_id": str(key), "name": "x", "revision": 1}))


@pytest.mark.proof
@pytest.mark.parametrize("replicas", [1])
def test_a_local_run_is_as_predicted(local):
    feed = Feed(local.spec, local.broker.host, writes(), writes_per_second=RATE, remember=False)
    feed.start()
    assert wait_until(lambda: feed.published >= 2 * RATE, PATIENCE_SECONDS)
    for consumer in local.consumers:
        consumer.pause()
    before, published, began = backlogs(local), feed.published, time.monotonic()
    time.sleep(OUTAGE_SECONDS)
    left, outage_seconds = backlogs(local), time.monotonic() - began
    rate = (feed.published - published) / outage_seconds  # a busy machine publishes less than was asked for
    load = Load(rate, KEYS, SKEW)
    predicted = {shard.shard: shard for shard in simulate(local.spec, load, Speed(SPEED, SPEED), outage_seconds).shards}
    resumed = time.monotonic()
    for consumer in local.consumers:
        consumer.resume()
    for shard, need in predicted.items():
        assert left[shard] - before[shard] == pytest.approx(need.backlog, rel=0.2), shard
    drained = {}
    while len(drained) < len(predicted):
        assert time.monotonic() < resumed + 60
        standing = backlogs(local)
        for shard in predicted:
            if shard not in drained and standing[shard] < RATE / 10:
                drained[shard] = time.monotonic() - resumed
        time.sleep(0.1)
    feed.stop()
    for shard, need in predicted.items():
        assert 0.5 * need.drain_seconds < drained[shard] < 2 * need.drain_seconds + 1, (shard, need, drained)


def backlogs(local):
    subscriptions = local.subscriptions()
    return {
        shard.name: sum(subscriptions[name]["undelivered"] for name in local.subscription_ids(shard))
        for shard in local.spec.shards
    }

"""A fleet of two shards with two replicas each, made for being hurt: short leases, no back-off."""

import pytest
from patience import PATIENCE_SECONDS

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Stream
from shardctl.local.oracle import verify
from shardctl.local.servers import BinaryMissingError
from shardctl.local.servers.process import wait_until

FLEET = """
fleet: hurt
project: my-project
image: example.com/consumer:1
message_types:
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text, credit: decimal, revision: bigint}}
  order: {table: orders, key: order_id, columns: {order_id: text, customer_id: text, lines: json, placed_at: timestamp}}
subscription: {retry_minimum: 0s, retry_maximum: 0s}
consumer: {lease: 10s}
shards:
  - {name: s0, slots: 0-511}
  - {name: s1, slots: 512-1023}
"""


@pytest.fixture
def fleet():
    return fleet_from(yamlfile.parse(FLEET, "shards.yaml"))


class Scene:
    """A fleet under load."""

    def __init__(self, local: LocalFleet, writes: int, writes_per_second: float | None = None) -> None:
        self.local = local
        stream = Stream(local.spec, writes, writes // 5, seed=3)
        self.feed = Feed(local.spec, local.broker.host, stream, writes_per_second=writes_per_second)
        self.feed.start()

    def until_published(self, count: int) -> None:
        assert wait_until(lambda: self.feed.published >= count or not self.feed.running, PATIENCE_SECONDS)
        assert self.feed.published >= count

    def until_under_way(self, shard: str) -> None:
        """Until replicas of the shard hold messages."""
        (name,) = self.local.subscription_ids(self.local.spec.shard(shard))
        assert wait_until(lambda: self.local.subscriptions()[name]["outstanding"] > 0, PATIENCE_SECONDS)

    def counts(self, shard: str) -> dict[str, int]:
        (name,) = self.local.subscription_ids(self.local.spec.shard(shard))
        return self.local.subscriptions()[name]["counts"]

    def verify(self, timeout_seconds: float = 60) -> None:
        """Nothing lost, nothing doubled, nothing misplaced."""
        self.feed.join()
        self.local.wait_drained(timeout_seconds)
        verdict = verify(self.local.spec, self.feed.writes, self.local.databases)
        assert not verdict.findings, "\n".join(map(str, verdict.findings[:20]))
        assert verdict.ok
        assert sum(shard.applied for shard in verdict.shards) == len(self.feed.writes)


@pytest.fixture
def replicas():
    """Of each shard. One starts sooner, where a test is not about two."""
    return 2


@pytest.fixture
def local(fleet, tmp_path, replicas):
    try:
        with LocalFleet(fleet, tmp_path, replicas=replicas) as local:
            yield local
    except BinaryMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def scene(local):
    def begin(writes: int, writes_per_second: float | None = None) -> Scene:
        return Scene(local, writes, writes_per_second)

    return begin

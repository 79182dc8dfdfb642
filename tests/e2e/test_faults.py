"""What is done to a running fleet costs time, never a write."""

import pytest
from patience import PATIENCE_SECONDS

from shardctl.local.servers.process import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.proof
def test_consumers_killed_in_the_middle_lose_and_double_nothing(local, scene):
    """SIGKILL, as when a node dies; started again, as Kubernetes would."""
    load = scene(8_000, writes_per_second=2_000)
    for at, shard, number in ((1_000, "s0", 0), (2_500, "s1", 1), (4_000, "s0", 1)):
        load.until_published(at)
        load.until_under_way(shard)
        local.replicas[shard][number].kill()
        local.replicas[shard][number].revive()
    load.verify()
    expired = sum(load.counts(shard).get("expired", 0) for shard in ("s0", "s1"))
    assert expired, "no kill hit a replica that held messages: the test proves nothing"


@pytest.mark.proof
def test_redis_that_stops_and_then_hangs_loses_and_doubles_nothing(local, scene):
    load = scene(8_000, writes_per_second=500)  # replicas notice while they work: it must last to the end
    load.until_published(500)
    local.redis.stop()
    assert wait_until(lambda: all(degraded(replica) for replica in local.consumers), PATIENCE_SECONDS), (
        "not every replica noticed"
    )
    load.until_published(1_500)
    local.redis.start()
    assert wait_until(lambda: not any(degraded(replica) for replica in local.consumers), PATIENCE_SECONDS), (
        "a replica takes no locks"
    )
    local.redis.pause()
    assert wait_until(lambda: all(degraded(replica) for replica in local.consumers), PATIENCE_SECONDS), (
        "not every replica noticed"
    )
    load.until_published(6_500)
    local.redis.resume()
    load.verify()
    assert all(replica.restarts == 0 and replica.running for replica in local.consumers)


@pytest.mark.parametrize("replicas", [1])
def test_a_database_killed_in_the_middle_loses_and_doubles_nothing(local, scene):
    """Both shards lose theirs at once; consumers wait, and go on by themselves."""
    load = scene(5_000, writes_per_second=2_000)
    load.until_published(1_500)
    load.until_under_way("s0")
    local.postgres.kill()
    load.until_published(3_000)
    local.postgres.start()
    load.verify()
    assert all(replica.restarts == 0 and replica.running for replica in local.consumers)


def degraded(replica) -> bool:
    return replica.metrics().get("shardctl_redis_degraded", 0) > 0


def test_sigterm_drains_within_the_grace_period(local, scene, fleet):
    load = scene(6_000, writes_per_second=1_500)
    load.until_published(2_000)
    load.until_under_way("s0")
    leaving = local.replicas["s0"][0]
    leaving.terminate()
    assert wait_until(lambda: not leaving.running, PATIENCE_SECONDS)
    assert leaving.exit_code == 0
    assert '"action": "drained"' in leaving.log_tail() or '"action":"drained"' in leaving.log_tail()
    load.verify()
    assert load.counts("s0").get("expired", 0) == 0, "messages waited for the end of a lease that nobody held any more"


@pytest.mark.proof
def test_a_replica_that_freezes_and_resumes_late_applies_nothing_twice(local, scene):
    """Its leases end meanwhile, and its messages go elsewhere; then it goes on where it was."""
    # It must last until the sleeper has been sent messages that it doesn't handle.
    load = scene(6_000, writes_per_second=400)
    # Which of the two gets most of the work is up to the broker. Behind its slow start it is sent messages all the time.
    assert wait_until(lambda: received(busiest(local, "s1")) > 300, PATIENCE_SECONDS)
    sleeper = busiest(local, "s1")
    load.until_under_way("s1")
    sleeper.pause()
    assert wait_until(lambda: load.counts("s1").get("expired", 0) > 0, PATIENCE_SECONDS)
    sleeper.resume()
    load.verify()


def busiest(local, shard):
    return max(local.replicas[shard], key=received)


def received(replica) -> float:
    return replica.metrics().get("shardctl_messages_received_total", 0)

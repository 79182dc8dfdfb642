"""The primary in a cluster or behind Sentinels is killed while consumers write. No write is lost or doubled, locks come back."""

from __future__ import annotations

import itertools
import threading

import pytest
import redis_kit
from consumer_kit import config
from consumerprocess_kit import consumers, customers, until

pytestmark = pytest.mark.proof

KEYS = [str(number) for number in range(20)]
PLACES = {
    "cluster": lambda folder: redis_kit.cluster(folder, "shop:s0", replica=True, node_timeout_ms=1_000),
    "sentinel": lambda folder: redis_kit.sentinels(folder, "shop:s0", down_after_ms=1_000),
}


class Load(threading.Thread):
    """Publishes rounds of writes, each key once a round, and the next round once the last one is written."""

    def __init__(self, broker):
        super().__init__()
        self.broker, self.rounds, self.ending = broker, 0, threading.Event()

    def run(self):
        for number in itertools.count(1):
            for key in KEYS:
                self.broker.publish({"customer_id": key, "name": str(number)}, key, idempotency_key=f"{key}/{number}")
            self.rounds = number
            until(lambda: self.broker.backlog() == 0 or self.ending.is_set(), what="an empty backlog")
            if self.ending.is_set():
                return


@pytest.mark.parametrize("kind", PLACES)
def test_writes_go_on_and_locks_are_taken_on_the_new_primary(kind, tmp_path, broker, shard):
    with PLACES[kind](tmp_path) as place, consumers(tmp_path, shard.url, place.url, broker) as start:
        settings = config().model_copy(update=place.configuration())
        replicas = [start(settings, "one"), start(settings, "two")]
        load = Load(broker)
        load.start()
        try:
            until(lambda: load.rounds >= 5)
            old = place.primary()
            assert keys_of(place, old)
            old.kill()
            lost_at = load.rounds
            until(lambda: any(replica.metric("shardctl_redis_degraded") for replica in replicas), what="its loss")
            until(lambda: load.rounds >= lost_at + 3, what="writes without Redis")
            until(place.has_primary, what="the fail-over")
            new = place.primary()
            assert new is not old
            until(lambda: not any(replica.metric("shardctl_redis_degraded") for replica in replicas), what="its return")
            back_at = load.rounds
            until(lambda: load.rounds >= back_at + 3 and keys_of(place, new), what="marks on the new primary")
            old.start()
            until(lambda: place.follows(old, new), what="the old primary follows")
            back_at = load.rounds
            until(lambda: load.rounds >= back_at + 3)
        finally:
            load.ending.set()
            load.join()
        until(lambda: broker.backlog() == 0, what="an empty backlog")
        assert customers(shard) == dict.fromkeys(KEYS, str(load.rounds))
        assert shard.rows("SELECT count(*) FROM shardctl_inbox") == [(len(KEYS) * load.rounds,)]
        assert [replica.terminate() for replica in replicas] == [0, 0]
        assert place.refusals() == []


def keys_of(place, server):
    with redis_kit.administer(server, place.logins.administrator) as client:
        return client.keys("{shop:s0}:*")

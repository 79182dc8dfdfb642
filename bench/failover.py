"""How long each recovery takes, beside what is asked for.

    python -m bench.failover [--json] [--rate N] [--unnoticed SECONDS]

The local fleet, under a steady load, with every setting as a fleet has it that sets nothing: two replicas a shard, a lease of 10
seconds, a back-off of 1. Each figure ends with what the database or the broker reports, not with what a consumer says of
itself; a message counts once it is acked, which is after its commit. At the end an oracle compares every write with the database.

- `consumer_kill_s`: a replica is killed and not started again; until everything published before that is committed, so also
  what it had under lease. The worse of two.
- `shard_down_drain_s`: all replicas are killed, stay away while the backlog grows, and are started again; until everything
  published before their return is committed.
- `database_failover_s`: the primary is killed, its synchronous standby promoted after `--unnoticed` seconds, which stand for
  whatever notices such a thing; until the first commit there.
- `redis_loss_gap_s`: Redis is killed; the longest time between two commits from a second before until 10 seconds after.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.report import parser_of, say, show
from bench.rig import FLEET, SHARD, SUBSCRIPTION, plain
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Stream
from shardctl.local.oracle import verify
from shardctl.local.servers.install import SUPERUSER
from shardctl.local.servers.process import HOST, wait_until

GOALS = {
    "consumer_kill_s": "<= 12",
    "shard_down_drain_s": "backlog kept, then drained",
    "database_failover_s": "< 120",
    "redis_loss_gap_s": "at once",
}
WARM_UP_WRITES = 3_000
DOWN_SECONDS = 10.0
REDIS_WATCHED_SECONDS = 10.0
LONGEST_SECONDS = 180.0


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rate", type=float, default=500, help="writes a second")
    parser.add_argument("--unnoticed", type=float, default=10, help="seconds a dead primary stays unnoticed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder, _load(Path(folder), options.rate) as scene:
        say("Redis is killed …")
        gap = scene.redis_loss()
        say("consumers are killed …")
        kill = max(scene.consumer_kill(number) for number in range(2))
        say("the whole shard is down …")
        backlog, drain = scene.shard_down()
        say("the database fails over …")
        failover = scene.database_failover(options.unnoticed)
        say("comparing …")
        writes = scene.verified()
    result = {
        "consumer_kill_s": round(kill, 1),
        "shard_down_drain_s": round(drain, 1),
        "database_failover_s": round(failover, 1),
        "redis_loss_gap_s": round(gap, 2),
        "shard_down_backlog": backlog,
        "primary_unnoticed_s": options.unnoticed,
        "writes_verified": writes,
    }
    show(result, options.json, GOALS)


class Pair(LocalFleet):
    """A fleet whose one database has a synchronous standby."""

    def start_servers(self):
        super().start_servers()
        self.standby = self.postgres.replica(self.directory / "standby", synchronous=True)

    def database_url(self, shard):
        ports = f"host={HOST}:{self.postgres.port}&host={HOST}:{self.standby.port}"
        user = f"{SUPERUSER}:{self.postgres.password}"
        return f"postgresql+psycopg://{user}@/{self._database_name(self.spec.shard(shard))}?{ports}"

    def stop(self):
        super().stop()
        self.standby.delete()


class Scene:
    """A fleet under load, and what is done to it."""

    def __init__(self, local, feed):
        self.local, self.feed = local, feed
        self.replicas = local.replicas[SHARD]
        self.primary = local.postgres

    def redis_loss(self):
        start = self._database_time()
        self._for_seconds(1)
        self.local.redis.kill()
        self._for_seconds(REDIS_WATCHED_SECONDS)
        # Redis is asked before a transaction begins: so a wait for Redis is a gap between commits.
        ((gap,),) = self._sql(
            "SELECT max(later - earlier) FROM (SELECT moment AS earlier, lead(moment, 1, clock_timestamp()) OVER "
            "(ORDER BY moment) AS later FROM (SELECT pg_xact_commit_timestamp(xmin) AS moment FROM shardctl_inbox) AS rows "
            f"WHERE moment > '{start}') AS pairs"
        )
        self.local.redis.start()
        return gap.total_seconds()

    def consumer_kill(self, number):
        assert wait_until(lambda: self._subscription()["outstanding"] > 0, 30)
        self.replicas[number].kill()
        seconds, _ = self._until_written()
        self.replicas[number].start()
        return seconds

    def shard_down(self):
        """The backlog at the return, and the seconds from then on."""
        for replica in self.replicas:
            replica.kill()
        self._for_seconds(DOWN_SECONDS)
        for replica in self.replicas:
            replica.revive()
        seconds, backlog = self._until_written()
        return backlog, seconds

    def database_failover(self, unnoticed_seconds):
        started = time.monotonic()
        self.primary.kill()
        self._for_seconds(unnoticed_seconds)
        self.local.standby.promote()
        self.primary = self.local.standby
        before = self._applied()
        assert wait_until(lambda: self._applied() > before, LONGEST_SECONDS)
        return time.monotonic() - started

    def verified(self):
        """Nothing was lost or doubled by all this; how many writes there were."""
        self.feed.stop()
        self.local.wait_drained(LONGEST_SECONDS)
        verdict = verify(self.local.spec, self.feed.writes, self.local.databases)
        if not verdict.ok:
            raise SystemExit("NOT VERIFIED: " + "; ".join(map(str, verdict.findings[:10])))
        return len(self.feed.writes)

    def until_published(self, count):
        assert wait_until(lambda: self.feed.published >= count or not self.feed.running, LONGEST_SECONDS)

    def _until_written(self):
        """Seconds until nothing is left that is published by now, and how much that is."""
        started, standing = time.time(), self._subscription()
        assert wait_until(lambda: self._oldest() > started, LONGEST_SECONDS)
        return time.time() - started, standing["undelivered"]

    def _oldest(self):
        """When the oldest message was published that isn't acked, in seconds since 1970."""
        age = self._subscription()["oldest_unacked_age_seconds"]
        return time.time() - (age or 0.0)

    def _subscription(self):
        return self.local.subscriptions()[SUBSCRIPTION]

    def _applied(self):
        ((count,),) = self._sql("SELECT count(*) FROM shardctl_inbox")
        return count

    def _database_time(self):
        ((now,),) = self._sql("SELECT clock_timestamp()")
        return now

    def _sql(self, query):
        with psycopg.connect(plain(self.primary.url("bench_s0")), sslmode="disable") as connection:
            return connection.execute(query).fetchall()

    @staticmethod
    def _for_seconds(seconds):
        wait_until(lambda: False, seconds)


@contextmanager
def _load(folder, rate):
    fleet = fleet_from(parse(FLEET, "bench"))
    with Pair(fleet, folder, replicas=2) as local:
        feed = Feed(fleet, local.broker.host, Stream(fleet, None, 20_000, seed=5), writes_per_second=rate)
        scene = Scene(local, feed)
        feed.start()
        try:
            scene.until_published(WARM_UP_WRITES)
            yield scene
        finally:
            feed.stop()


if __name__ == "__main__":
    main()

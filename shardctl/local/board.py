"""The state of the local fleet, as `shardctl status` shows it, plus what only `shardctl up` knows of its parts."""

from __future__ import annotations

from functools import partial

from shardctl.local.fleet import LocalFleet
from shardctl.rebalance.backlog import of_broker
from shardctl.status.collector import Collector, LocalMetrics, Sources
from shardctl.status.report import Report


class Board:
    """Looks at the fleet's own parts."""

    def __init__(self, local: LocalFleet) -> None:
        self._local = local
        self._looker = Collector(
            Sources(
                urls=lambda fleet: {shard.name: local.database_url(shard.name) for shard in fleet.shards},
                backlogs=lambda fleet: partial(of_broker, local.broker.host, fleet.project),
                metrics=LocalMetrics(lambda: local.local_file().consumers),
                local=True,
            )
        )

    def take(self) -> Report:
        return self._looker.look(self._local.spec).report

    def foot(self) -> str:
        redis = "up" if self._local.redis.running else "down"
        return f"redis {redis}   restarts {sum(consumer.restarts for consumer in self._local.consumers):,}"

    def close(self) -> None:
        """Close the connections to the databases."""
        self._looker.close()

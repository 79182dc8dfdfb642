"""The consumer processes of a local fleet, managed like pods: a changed shard gets a new replica before it loses an old one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shardctl import atomicfile
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet, Shard
from shardctl.local.processes import ConsumerProcess
from shardctl.local.servers.process import Server, free_port
from shardctl.render import config_text

START_SECONDS, START_SECONDS_A_CONSUMER = 30.0, 2.0  # each takes a second of a core, and they all start at once
STOP_MARGIN_SECONDS = 10.0  # beyond the consumer's own drain, as in the rendered Deployment
LONGEST_REVIVE_PAUSE_SECONDS = 10.0


class Consumers:
    """`by_shard` holds the replicas of each shard; during a rollout, those that serve.

    `environment_of` gives what a pod takes from Secrets, by the shard's name. `taken` are ports in use by others. `changed` is
    called, from any thread, when the set of serving replicas changes.
    """

    def __init__(
        self,
        directory: Path,
        replicas: int,
        taken: set[int],
        environment_of: Callable[[str], Mapping[str, str]],
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self.by_shard: dict[str, tuple[ConsumerProcess, ...]] = {}
        self._directory, self._replicas, self._taken, self._environment_of = directory, replicas, taken, environment_of
        self._changed = changed
        self._made: dict[str, int] = {}  # how many replicas a shard has had: no two share a name, as no two pods do
        self._texts: dict[str, str] = {}  # the configuration that a replica was started with, by its name
        self._drain_seconds: dict[str, float] = {}
        self._revive_at: dict[str, float] = {}

    @property
    def all(self) -> list[ConsumerProcess]:
        """Every replica of every shard."""
        return [consumer for replicas in self.by_shard.values() for consumer in replicas]

    def make(self, fleet: Fleet, shard: Shard) -> None:
        """The shard's replicas, not started yet."""
        self.by_shard[shard.name] = tuple(self._make(fleet, shard) for _ in range(self._replicas))

    def start(self, fleet: Fleet) -> None:
        """Every replica of every shard; ready when it returns."""
        for shard in fleet.shards:
            self._write_config(fleet, shard)
        at_once(self._starter(shard, consumer) for shard, all_ in self.by_shard.items() for consumer in all_)

    def apply(self, fleet: Fleet) -> tuple[str, ...]:
        """Start new shards' replicas, roll those whose configuration has changed, stop those of shards that are gone.

        Returns the shards it changed; none where nothing differs. After an error it may be called again: a replica that has the
        right configuration by then is left as it is.
        """
        new = [shard for shard in fleet.shards if shard.name not in self.by_shard]
        changed = [shard for shard in fleet.shards if shard.name in self.by_shard and self._outdated(fleet, shard)]
        gone = [name for name in self.by_shard if name not in {shard.name for shard in fleet.shards}]
        for shard in (*new, *changed):
            self._write_config(fleet, shard)
        for shard in new:
            self.make(fleet, shard)
        calls: list[Callable[[], object]] = [
            self._starter(shard.name, consumer) for shard in new for consumer in self.by_shard[shard.name]
        ]
        calls += [self._roller(fleet, shard) for shard in changed]
        calls += [self._remover(name) for name in gone]
        at_once(calls)
        self._changed()
        return (*(shard.name for shard in (*new, *changed)), *gone)

    def stop(self) -> None:
        """They drain, all at once. Safe to call again."""
        for consumer in self.all:
            consumer.resume()
            consumer.terminate()
        at_once(self._stopper(shard, consumer) for shard, all_ in self.by_shard.items() for consumer in all_)

    def revive(self) -> list[ConsumerProcess]:
        """Restart processes that died, as Kubernetes would, with growing pauses if they die at once. Returns which."""
        revived = []
        for consumer in self.all:
            if not consumer.died:
                continue
            due = self._revive_at.setdefault(
                consumer.name, time.monotonic() + min(LONGEST_REVIVE_PAUSE_SECONDS, consumer.restarts * 2.0)
            )
            if time.monotonic() >= due:
                del self._revive_at[consumer.name]
                consumer.revive()
                revived.append(consumer)
        return revived

    def config_file(self, shard: str) -> Path:
        """The same text as the rendered ConfigMap's."""
        return self._directory / "config" / shard / "shard.json"

    # -- parts -------------------------------------------------------------------------------------------------------

    def _make(self, fleet: Fleet, shard: Shard) -> ConsumerProcess:
        number = self._made.get(shard.name, 0)
        self._made[shard.name] = number + 1
        name = f"{topology.shard_id(fleet, shard)}-{number}"
        consumer = ConsumerProcess(self._directory / "consumers" / name, name, self.config_file(shard.name))
        settle_port(consumer, self._taken)
        return consumer

    def _write_config(self, fleet: Fleet, shard: Shard) -> None:
        self._drain_seconds[shard.name] = shard.consumer.drain_timeout.total_seconds()
        file = self.config_file(shard.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.write(file, config_text(fleet, shard).encode())

    def _outdated(self, fleet: Fleet, shard: Shard) -> list[ConsumerProcess]:
        wanted = config_text(fleet, shard)
        return [replica for replica in self.by_shard[shard.name] if self._texts.get(replica.name) != wanted]

    def _starter(self, shard: str, consumer: ConsumerProcess) -> Callable[[], object]:
        def start() -> None:
            consumer.environment = self._environment_of(shard)
            self._texts[consumer.name] = self.config_file(shard).read_text()
            consumer.start(START_SECONDS + START_SECONDS_A_CONSUMER * len(self.all))

        return start

    def _roller(self, fleet: Fleet, shard: Shard) -> Callable[[], object]:
        """One after the other: a new replica is ready before an old one drains, so the shard always has its readers."""

        def roll() -> None:
            for old in self._outdated(fleet, shard):
                new = self._make(fleet, shard)
                self._starter(shard.name, new)()
                self.by_shard[shard.name] = tuple(
                    new if replica is old else replica for replica in self.by_shard[shard.name]
                )
                self._changed()
                self._stopper(shard.name, old)()

        return roll

    def _remover(self, shard: str) -> Callable[[], object]:
        def remove() -> None:
            for consumer in self.by_shard[shard]:
                consumer.terminate()
            for consumer in self.by_shard.pop(shard):
                self._stopper(shard, consumer)()

        return remove

    def _stopper(self, shard: str, consumer: ConsumerProcess) -> Callable[[], object]:
        return lambda: consumer.stop(self._drain_seconds.get(shard, 0.0) + STOP_MARGIN_SECONDS)


def settle_port(server: Server, taken: set[int]) -> None:
    """Different ports for all of them: each was free when it was picked and may still be, so it could be picked twice."""
    while server.port in taken:
        server.port = free_port()
    taken.add(server.port)


def at_once(calls: Iterable[Callable[[], object]]) -> None:
    """Run them all in threads; when some raise, the first error once all have ended."""
    listed = list(calls)
    if not listed:
        return
    with ThreadPoolExecutor(len(listed), thread_name_prefix="fleet") as threads:
        for future in [threads.submit(call) for call in listed]:
            future.result()

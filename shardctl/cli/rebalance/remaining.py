"""What is left of a rebalance that has been approved, by its file and its databases. Only looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shardctl.cli.provision import pubsub_clients
from shardctl.cli.rebalance.finish import look_at_old, reasons_to_keep
from shardctl.cli.rebalance.intent import urls_of
from shardctl.cli.rebalance.work import Work, odd_slots, work_on, work_with

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.preflight import Known


@dataclass(frozen=True, slots=True)
class Remaining:
    """`fleet` is transitional. `urls` gives the databases' URLs by shard, those that come on the way too."""

    file: Path
    fleet: Fleet
    urls: Callable[[], Mapping[str, str]]

    def database(self) -> list[str]:
        """The URLs as a step takes them: of the shards that take part."""
        return databases_of(self.fleet, self.urls())

    def to_start(self) -> bool:
        """Whether `start` has anything left to do. It may run again, but would refuse what is nearly finished."""
        from shardctl import lockfile
        from shardctl.rebalance import closing, journal

        with work_on(self.fleet, self.database()) as work:
            known = work.known()
            if any(journal.entry_of(self.fleet, database.entries) is None for database in known.values()):
                return True
            if not list(closing.not_handed_over(self.fleet, known)):
                return False
            return lockfile.read(self.file) != lockfile.lock_of(self.fleet) or bool(
                odd_slots(work, known, announced=True)
            )

    def to_move(self) -> bool:
        """Whether a slot isn't where the file says."""
        with work_on(self.fleet, self.database()) as work:
            return self._is_to_move(work.known())

    def kept(self, keep: timedelta) -> list[str]:
        """Why `finish` waits, where the sources are to keep their copies for so long after the last slot moved."""
        return self._reasons(lambda _, known: reasons_to_keep(known, keep))

    def missing_readers(self) -> list[str]:
        """Consumers without which `run` would refuse; none where nothing is left to move."""
        from shardctl.rebalance import preflight

        def look(_: Work, known: Mapping[str, Known]) -> list[str]:
            return list(preflight.absent_consumers(self.fleet, known)) if self._is_to_move(known) else []

        return self._reasons(look)

    def undrained(self, *, drained: bool) -> list[str]:
        """Why old subscriptions, and shards without slots, can't go yet."""
        from shardctl.rebalance import closing

        def look(work: Work, known: Mapping[str, Known]) -> list[str]:
            with pubsub_clients(self.fleet) as (_, subscriber):
                reasons = look_at_old(self.fleet, known, subscriber, drained=drained)[2]
            return [*reasons, *closing.not_published(self.fleet, work.databases)]

        return self._reasons(look)

    def missing_databases(self) -> list[str]:
        """Shards that take part and whose databases have no URL here yet."""
        from shardctl.rebalance import handover

        urls = urls_of(self.fleet, self.urls())
        return [shard.name for shard in handover.participating(self.fleet) if shard.name not in urls]

    def _reasons(self, look: Callable[[Work, Mapping[str, Known]], list[str]]) -> list[str]:
        """A database that is away for a moment is one more reason to wait."""
        from shardctl.rebalance.preflight import PreflightError

        try:
            with work_on(self.fleet, self.database()) as work:
                return look(work, work.known())
        except PreflightError as error:
            return list(error.reasons)

    def _is_to_move(self, known: Mapping[str, Known]) -> bool:
        from shardctl.rebalance import closing

        return bool(list(closing.not_handed_over(self.fleet, known)))


def databases_of(fleet: Fleet, urls: Mapping[str, str]) -> list[str]:
    """As `--database` has them, of the shards that take part in the fleet's rebalance."""
    from shardctl.rebalance import handover

    return [f"{shard.name}={urls[shard.name]}" for shard in handover.participating(fleet) if shard.name in urls]


def old_readers(file: Path, given: Mapping[str, str]) -> list[str]:
    """Generations that consumers of a settled file still read, though it has them no more; of databases whose URLs are known."""
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance import preflight

    fleet = load_fleet(file)
    with work_with(fleet, urls_of(fleet, given)) as work:
        known = work.known()
    return [
        f"a consumer of shard {shard.name} reads generation {generation}, which is finished"
        for shard in fleet.shards
        for generation, ago in sorted((known[shard.name].readers if shard.name in known else {}).items())
        if generation != shard.generation and ago < preflight.SEEN
    ]

"""Queries every source of a fleet at once, and assembles a report."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import database_url_variable
from shardctl.rebalance import backlog
from shardctl.rebalance.preflight import Known
from shardctl.shard.membership import Membership
from shardctl.status import consumers, history, localfile
from shardctl.status.databases import Databases
from shardctl.status.moving import SlotMap, slot_maps
from shardctl.status.poller import Asker
from shardctl.status.prometheus import Prometheus
from shardctl.status.report import DatabaseFacts, Report, Unknown, Work, assemble, subscription_ids

EMULATOR = "PUBSUB_EMULATOR_HOST"
PATIENCE_SECONDS = 8.0
KNOCK_SECONDS = 2.0
NEAR_SECONDS, FAR_SECONDS = (
    1.0,
    15.0,
)  # between two looks: at a local fleet, and at a cloud whose figures are minutes old


Metrics = Callable[[Fleet], Mapping[str, Work]]  # by shard; raises ShardctlError where the source is unknown


@dataclass(frozen=True, slots=True)
class Sources:
    """`urls` has each shard's database URL or why there is none; `local`: all of it is on this machine.

    `history` gives the last hour, where a server has kept it. Raises ShardctlError.
    """

    urls: Callable[[Fleet], Mapping[str, str | Unknown]]
    backlogs: Callable[[Fleet], backlog.Source]
    metrics: Metrics
    local: bool = False
    history: Callable[[Fleet], history.History] | None = None

    @property
    def pace_seconds(self) -> float:
        """How often to look."""
        return NEAR_SECONDS if self.local else FAR_SECONDS


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: the report, and what it was made of, by shard and by subscription."""

    fleet: Fleet
    report: Report
    facts: Mapping[str, DatabaseFacts | Unknown]
    backlogs: Mapping[str, backlog.Backlog] | Unknown

    @property
    def known(self) -> dict[str, Known]:
        """The databases that answered."""
        return {name: facts.known for name, facts in self.facts.items() if isinstance(facts, DatabaseFacts)}

    def slot_maps(self) -> tuple[SlotMap, ...]:
        return slot_maps(self.fleet, self.known)


class Collector:
    """One look after another; rates are those between two of them. Close it after use."""

    def __init__(self, sources: Sources, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.sources = sources
        self._asker = Asker(patience_seconds)
        self._databases = Databases()
        self._backlog_source: backlog.Source | None = None

    def look(self, fleet: Fleet) -> Look:
        """Takes no longer than its patience. A failing server raises nothing; it becomes Unknown."""
        urls = self.sources.urls(fleet)
        questions: dict[str, Callable[[], Any]] = {
            "backlog": partial(self._backlogs, fleet),
            "metrics": partial(self.sources.metrics, fleet),
        }
        reachable = {name: url for name, url in urls.items() if not isinstance(url, Unknown)}
        questions |= {
            f"database of {name}": partial(self._databases.look, Membership(fleet.fleet, name), url)
            for name, url in reachable.items()
        }
        answers = self._asker.ask(questions)
        facts: dict[str, DatabaseFacts | Unknown] = {
            name: url if isinstance(url, Unknown) else answers[f"database of {name}"] for name, url in urls.items()
        }
        report = assemble(fleet, datetime.now(UTC), facts, answers["backlog"], answers["metrics"])
        return Look(fleet, report, facts, answers["backlog"])

    def close(self) -> None:
        self._databases.close()

    def _backlogs(self, fleet: Fleet) -> Mapping[str, backlog.Backlog]:
        if self._backlog_source is None:
            self._backlog_source = self.sources.backlogs(fleet)
        return self._backlog_source(subscription_ids(fleet))


class FleetFile:
    """`shards.yaml`, read again when it has changed: a rebalance may rewrite it during `--watch`. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # of two that read a change, the later must not be overwritten by the earlier
        self._stamp = self._now()
        self._fleet = load_fleet(path)
        self.fault = ""  # why the newest file isn't followed

    def fleet(self) -> Fleet:
        """The fleet of the file, or of its last readable version."""
        with self._lock:
            now = self._now()
            if now != self._stamp:
                self._stamp = now
                try:
                    self._fleet, self.fault = load_fleet(self._path), ""
                except ShardctlError as error:
                    self.fault = str(error)
            return self._fleet

    def _now(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


def sources(given: Mapping[str, str], prometheus: str | None, environment: Mapping[str, str] = os.environ) -> Sources:
    """The sources to query, by options and environment. Raises UsageError."""
    file = environment.get(localfile.VARIABLE)
    server = Prometheus(prometheus) if prometheus else None
    if server is not None:
        metrics: Metrics = server.work
    elif file:
        metrics = LocalMetrics(lambda: localfile.read(Path(file)).consumers)
    else:
        metrics = _nobody
    return Sources(
        partial(database_urls, given=given, environment=environment, file=Path(file) if file else None),
        partial(_backlog_source, host=environment.get(EMULATOR)),
        metrics,
        local=EMULATOR in environment and not server,
        history=partial(history.ask, server) if server else None,
    )


def _backlog_source(fleet: Fleet, host: str | None) -> backlog.Source:
    """Connects to a local broker first: gRPC would wait for it to start."""
    ask = backlog.source(fleet.project)

    def answer(ids: Sequence[str]) -> Mapping[str, backlog.Backlog]:
        if host:
            name, _, port = host.rpartition(":")
            try:
                socket.create_connection((name.strip("[]"), int(port)), KNOCK_SECONDS).close()
            except (OSError, ValueError, OverflowError):
                raise backlog.UnknownError(f"nothing listens at {EMULATOR}={host}. Has the fleet ended?") from None
        return ask(ids)

    return answer


class LocalMetrics:
    """Reads the metrics of the consumers that are listed at each look."""

    def __init__(self, listed: Callable[[], tuple[localfile.LocalConsumer, ...]]) -> None:
        self._listed, self._rates = listed, consumers.Rates()

    def __call__(self, _: Fleet) -> Mapping[str, Work]:
        return self._rates.work(consumers.samples(self._listed()))


def _nobody(_: Fleet) -> Mapping[str, Work]:
    raise ShardctlError(
        "where they are is unknown. Give --prometheus URL; for a fleet that runs here, read the env file that "
        "`shardctl up` names."
    )


def database_urls(
    fleet: Fleet, given: Mapping[str, str], environment: Mapping[str, str], file: Path | None
) -> dict[str, str | Unknown]:
    """Each shard's database URL: from options, from the environment, from the local fleet. Raises UsageError."""
    for name in given:
        fleet.shard(name)
    local: Mapping[str, str] = {}
    if file is not None:
        with suppress(localfile.LocalFileError):  # reported where the metrics are read
            local = localfile.read(file).databases
    urls: dict[str, str | Unknown] = {}
    for shard in fleet.shards:
        url = given.get(shard.name) or environment.get(database_url_variable(shard)) or local.get(shard.name)
        urls[shard.name] = url or Unknown("no URL: set SHARDCTL_DATABASE_URL_<SHARD>, or give --database SHARD=URL")
    return urls

"""One run: start, hurt, heal, drain, judge."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from shardctl.errors import ShardctlError
from shardctl.local.fleet import POLL_SECONDS
from tests.chaos import oracle
from tests.chaos.nemesis import Event, Nemesis, Planned, schedule
from tests.chaos.oracle import Finding, Observed, Truth
from tests.chaos.producer import Producer
from tests.chaos.scene import Scene
from tests.chaos.writes import Stream

PRODUCERS = 2
NO_PROGRESS_SECONDS = 60.0  # leases, back-offs and timeouts are all far shorter
DRAIN_SECONDS = 300.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `seconds` is how long faults last; producers publish at `writes_per_second` for as long."""

    seed: int
    seconds: float
    faults: tuple[str, ...]
    directory: Path
    writes_per_second: float
    keep: bool = False  # databases and logs also when all is well


@dataclass(frozen=True, slots=True)
class Standing:
    """How it goes. `settled` are the messages that consumers have acked."""

    seconds: float
    active: tuple[Planned, ...]
    published: int
    settled: int
    backlog: int


class Watch(Protocol):
    """Whoever looks on; called from several threads."""

    def stage(self, what: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def standing(self, standing: Standing) -> None: ...


@dataclass(frozen=True, slots=True)
class Report:
    """`counts` tell what happened; `trouble` is what kept the harness itself from doing its work."""

    plan: Plan
    directory: Path
    findings: tuple[Finding, ...]
    history: tuple[Event, ...]
    faults: Mapping[str, int]
    counts: Mapping[str, int]
    trouble: tuple[str, ...]
    log_tails: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.findings and not self.trouble


def run(plan: Plan, watch: Watch) -> Report:
    """The whole of it. Raises ShardctlError when the fleet doesn't start."""
    scene = Scene(plan.directory)
    scene.local.keep = True  # an end by surprise leaves everything to look at
    try:
        watch.stage(f"seed {plan.seed}: starting a broker, Redis, PostgreSQL and the consumers")
        scene.start()
        campaign = Campaign(scene, plan, watch)
        campaign.hurt()
        campaign.drain()
        report = campaign.judge()
        scene.local.keep = plan.keep or not report.ok
    finally:
        scene.local.stop()
    if not scene.local.keep:
        shutil.rmtree(plan.directory, ignore_errors=True)
    return report


class Campaign:
    """What happens to one running fleet. Each step once, in the order in which they stand here."""

    def __init__(self, scene: Scene, plan: Plan, watch: Watch) -> None:
        self.scene, self.local, self.plan, self.watch = scene, scene.local, plan, watch
        replicas = {shard: len(of_shard) for shard, of_shard in self.local.replicas.items()}
        self.schedule = schedule(plan.seed, plan.seconds, plan.faults, replicas)
        self.nemesis = Nemesis(scene, self.schedule, watch.event)
        rate = plan.writes_per_second / PRODUCERS
        self.producers = [
            Producer(self.local, Stream(plan.seed, number, round(rate * plan.seconds)), rate)
            for number in range(PRODUCERS)
        ]
        self.crashes: list[str] = []  # consumers that ended by themselves
        self._subscriptions: Mapping[str, Any] = {}
        self._looked = 0.0

    def hurt(self) -> None:
        """Publish everything while faults come and go; heal all in the end."""
        self.watch.stage(f"{len(self.schedule)} faults within {self.plan.seconds:g} s, while producers publish")
        self._began = time.monotonic()
        for producer in self.producers:
            producer.start()
        self.nemesis.start()
        try:
            while self.nemesis.running or any(producer.running for producer in self.producers):
                self.look()
                time.sleep(POLL_SECONDS)
        finally:
            self.nemesis.stop()
            self.scene.heal()
            for producer in self.producers:
                producer.stop()

    def drain(self) -> None:
        """Wait until nothing is left, as long as it goes on."""
        self.watch.stage("all healed; waiting until nothing is left")
        began = moved = time.monotonic()
        settled = -1
        while left := sum(self.local.backlog().values()):
            self.look()
            if (now := self._count("acked")) != settled:
                settled, moved = now, time.monotonic()
            if time.monotonic() > min(moved + NO_PROGRESS_SECONDS, began + DRAIN_SECONDS):
                break
            time.sleep(POLL_SECONDS)
        self.watch.stage(f"{left:,} messages are STUCK" if left else "everything is settled")

    def judge(self) -> Report:
        """End the consumers, so that nothing changes any more, and compare."""
        left = self.local.backlog()
        tails = {consumer.name: consumer.log_tail() for consumer in self.local.consumers} if any(left.values()) else {}
        self._write("metrics.json", {consumer.name: consumer.metrics() for consumer in self.local.consumers})
        self.scene.stop_consumers()
        truth = Truth(
            [operation for producer in self.producers for operation in producer.begun.values()],
            frozenset().union(*(producer.acked for producer in self.producers)),
        )
        backlog = {
            shard.name: sum(left[name] for name in self.local.subscription_ids(shard))
            for shard in self.local.spec.shards
        }
        observed = Observed(oracle.read(self.local.databases), self.scene.dead_letters(), backlog)
        findings = oracle.judge(truth, observed, self.scene.layout())
        report = Report(
            self.plan,
            self.local.directory,
            tuple(findings),
            tuple(sorted(self.nemesis.history, key=attrgetter("at"))),
            Counter(planned.fault for planned in self.schedule),
            self._counts(truth, observed),
            tuple(self._trouble()),
            tails,
        )
        self._keep_history(report, truth)
        return report

    def look(self) -> None:
        """Revive what crashed; now and then tell how it goes."""
        for consumer in self.scene.revive_crashed():
            self.crashes.append(consumer.name)
            self.watch.stage(f"{consumer.name} ENDED BY ITSELF and was started again; its log: {consumer.log_file}")
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            self._subscriptions = self.local.subscriptions()
        except ShardctlError:
            return  # the broker stands still, which may be on purpose
        self.watch.standing(
            Standing(
                time.monotonic() - self._began,
                tuple(self.nemesis.active),
                sum(producer.published for producer in self.producers),
                self._count("acked"),
                sum(self._subscriptions[name]["undelivered"] for name in self._ids()),
            )
        )

    def _trouble(self) -> list[str]:
        return [
            *map(str, self.nemesis.failures),
            *(f"a producer gave up: {producer.error}" for producer in self.producers if producer.error),
            *(f"{name} ended by itself" for name in self.crashes),
            *(f"{name} didn't end within its grace period" for name in self.scene.overstayed),
        ]

    def _counts(self, truth: Truth, observed: Observed) -> dict[str, int]:
        self._subscriptions = self.local.subscriptions()
        told = ("delivered", "acked", "expired", "nacked", "duplicated", "dead_lettered")
        return {
            "writes": len(truth.begun),
            "acknowledged": len(truth.acked),
            "published": sum(producer.published for producer in self.producers),
            "second copies": sum(producer.duplicates for producer in self.producers),
            "poison": sum(operation.poison is not None for operation in truth.begun),
            "dead letters": len(observed.dead),
            **{name: self._count(name) for name in told},
            "consumer restarts": sum(consumer.restarts for consumer in self.local.consumers),
        }

    def _ids(self) -> list[str]:
        return [name for shard in self.local.spec.shards for name in self.local.subscription_ids(shard)]

    def _count(self, what: str) -> int:
        return sum(self._subscriptions[name]["counts"].get(what, 0) for name in self._ids() if self._subscriptions)

    def _keep_history(self, report: Report, truth: Truth) -> None:
        self._write("schedule.json", [dataclasses.asdict(planned) for planned in self.schedule])
        self._write("history.json", [dataclasses.asdict(event) for event in report.history])
        self._write("findings.json", [dataclasses.asdict(finding) for finding in report.findings])
        self._write("broker.json", self._subscriptions)
        acked = frozenset(truth.acked)
        self._write("writes.json", [{**dataclasses.asdict(op), "acked": op.key in acked} for op in truth.begun])

    def _write(self, name: str, data: Any) -> None:
        (self.local.directory / name).write_text(json.dumps(data, indent=1, default=str))

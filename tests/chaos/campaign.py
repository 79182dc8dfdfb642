"""What happens to one running fleet, from the first write to the verdict."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.local.fleet import POLL_SECONDS
from tests.chaos import observed, oracle, planted
from tests.chaos.careless import Careless
from tests.chaos.mover import SHARDS, Mover
from tests.chaos.nemesis import QUIET_SECONDS, QUIETER_SECONDS, Event, Nemesis, schedule
from tests.chaos.observed import Observed
from tests.chaos.oracle import Truth
from tests.chaos.producer import Producer
from tests.chaos.report import Plan, Report, Standing, Watch
from tests.chaos.scene import REPLICAS, Scene
from tests.chaos.writes import Stream

PRODUCERS = 2
CARELESS_SHARE = 0.4  # of the writes, where slots move
NO_PROGRESS_SECONDS = 60.0  # leases, back-offs and timeouts are all far shorter
DRAIN_SECONDS = 300.0
FIRST_MOVE_SECONDS = 120.0  # beyond the time of the faults
LOOK_SECONDS, ASK_SECONDS = 1.0, 4.0
# At least: what a consumer did right before its end is not reported.
METRICS = {
    "held": "shardctl_messages_held_total",
    "passed on": "shardctl_messages_passed_on_total",
    "published again": "shardctl_messages_published_again_total",
}
# While slots move: some messages come so late that their slot has gone, and some come again.
ALWAYS = {"delay_rate": 0.04, "delay_seconds": 7.0, "duplicate_rate": 0.01}


class Campaign:
    """What happens to one running fleet. Each step once, in the order in which they stand here."""

    def __init__(self, scene: Scene, plan: Plan, watch: Watch) -> None:
        self.scene, self.local, self.plan, self.watch = scene, scene.local, plan, watch
        shards = SHARDS if plan.rebalance else tuple(self.local.replicas)
        quiet = QUIETER_SECONDS if plan.rebalance else QUIET_SECONDS
        self.schedule = schedule(plan.seed, plan.seconds, plan.faults, dict.fromkeys(shards, REPLICAS), quiet)
        self.nemesis = Nemesis(scene, self.schedule, watch.event)
        self.careless: list[Careless] = []
        self.mover: Mover | None = None
        self.moves: list[Event] = []  # what the mover did
        rate = plan.writes_per_second / PRODUCERS
        if plan.rebalance:
            command = planted.command(plan.mistake, "shardctl") if plan.mistake else ()
            self.mover = Mover(scene, plan.seed, self._note_move, command)
            wild = plan.writes_per_second * CARELESS_SHARE
            rate *= 1 - CARELESS_SHARE
            self.careless.append(Careless(self.local, Stream(plan.seed, PRODUCERS, round(wild * plan.seconds)), wild))
        self.producers: list[Producer | Careless] = [
            *(
                Producer(self.local, Stream(plan.seed, number, round(rate * plan.seconds)), rate)
                for number in range(PRODUCERS)
            ),
            *self.careless,
        ]
        self.crashes: list[str] = []  # consumers that ended by themselves
        self._subscriptions: Mapping[str, Any] = {}
        self._last: dict[str, Counter[str]] = {}  # what each subscription counted when it was seen last
        self._past: Counter[str] = Counter()  # what those counted that are gone
        self._looked = self._asked = 0.0
        self._metrics: dict[str, dict[str, float]] = {}  # what each consumer reported last, also of those that are gone

    def hurt(self) -> None:
        """Publish everything while faults come and go; heal all in the end."""
        self.watch.stage(f"{len(self.schedule)} faults within {self.plan.seconds:g} s, while producers publish")
        self._began = time.monotonic()
        for producer in self.producers:
            producer.start()
        self.nemesis.start()
        if self.mover:
            self.scene.set_broker_habit("always", ALWAYS)
            self.mover.start()
        try:
            while self.nemesis.running or any(producer.running for producer in self.producers) or self._nothing_moved():
                self.look()
                time.sleep(POLL_SECONDS)
        finally:
            self.nemesis.stop()
            if self.mover:
                self.mover.come_to_an_end()
            self.scene.heal()
            for producer in self.producers:
                producer.stop()
            self._end_moves()

    def _nothing_moved(self) -> bool:
        """On a slow machine: a run in which no slot moved under fire would prove nothing."""
        if self.mover is None or not self.mover.running or self.mover.counts["rebalances"]:
            return False
        return time.monotonic() - self._began < self.plan.seconds + FIRST_MOVE_SECONDS

    def _end_moves(self) -> None:
        """Bring a rebalance that is under way to its end."""
        if self.mover:
            self.watch.stage("all healed; bringing the last rebalance to its end")
            while self.mover.running:
                self.look()
                time.sleep(POLL_SECONDS)

    def _note_move(self, what: str) -> None:
        event = Event(time.monotonic() - self._began, what)
        self.moves.append(event)
        self.watch.event(event)

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
        self._ask_consumers()
        self._write("metrics.json", self._metrics)
        self.scene.stop_consumers()
        if self.mover:
            self.mover.verify()
        truth = Truth(
            [operation for producer in self.producers for operation in producer.begun.values()],
            frozenset().union(*(producer.acked for producer in self.producers)),
            {operation.entity for producer in self.careless for operation in producer.begun.values()},
        )
        backlog = {
            shard.name: sum(left[name] for name in self.local.subscription_ids(shard))
            for shard in self.local.spec.shards
        }
        observations = Observed(observed.read(self.scene.databases), self.scene.dead_letters(), backlog)
        findings = oracle.judge(truth, observations, self.scene.layout())
        report = Report(
            self.plan,
            self.local.directory,
            tuple(findings),
            tuple(sorted((*self.nemesis.history, *self.moves), key=attrgetter("at"))),
            Counter(planned.fault for planned in self.schedule),
            self._counts(truth, observations),
            tuple(self._trouble()),
            tails,
        )
        self._keep_history(report, truth)
        return report

    def look(self) -> None:
        """Revive what crashed; now and then report how it goes."""
        for consumer in self.scene.revive_crashed():
            self.crashes.append(consumer.name)
            self.watch.stage(f"{consumer.name} ENDED BY ITSELF and was started again; its log: {consumer.log_file}")
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            self._look_at_subscriptions()
        except ShardctlError:
            return  # the broker doesn't answer: a fault may have frozen it
        if self._looked - self._asked >= ASK_SECONDS:
            self._asked = self._looked
            self._ask_consumers()
        self.watch.standing(
            Standing(
                time.monotonic() - self._began,
                tuple(self.nemesis.active),
                sum(producer.published for producer in self.producers),
                self._count("acked"),
                sum(
                    subscription["undelivered"]
                    for name, subscription in self._subscriptions.items()
                    if self._is_a_shards(name)
                ),
            )
        )

    def _ask_consumers(self) -> None:
        self._metrics |= {
            consumer.name: metrics for consumer in self.local.consumers if (metrics := consumer.metrics())
        }

    def _trouble(self) -> list[str]:
        return [
            *map(str, self.nemesis.failures),
            *(f"a producer gave up: {producer.error}" for producer in self.producers if producer.error),
            *(f"{name} ended by itself" for name in self.crashes),
            *(f"{name} didn't end within its grace period" for name in self.scene.overstayed),
            *(self.mover.faults if self.mover else ()),
        ]

    def _counts(self, truth: Truth, observations: Observed) -> dict[str, int]:
        self._look_at_subscriptions()
        names = ("delivered", "acked", "expired", "nacked", "duplicated", "dead_lettered")
        return {
            "writes": len(truth.begun),
            "acknowledged": len(truth.acked),
            "published": sum(producer.published for producer in self.producers),
            "second copies": sum(producer.duplicates for producer in self.producers),
            "poison": sum(operation.poison is not None for operation in truth.begun),
            "dead letters": len(observations.dead),
            **{name: self._count(name) for name in names},
            "consumer restarts": sum(consumer.restarts for consumer in self.local.consumers),
            **{
                name: int(sum(metrics.get(metric, 0) for metrics in self._metrics.values()))
                for name, metric in METRICS.items()
            },
            **(self.mover.all_counts() if self.mover else {}),
        }

    def _look_at_subscriptions(self) -> None:
        """Those that a rebalance has deleted still count, as does one that was deleted and made again."""
        self._subscriptions = self.local.subscriptions()
        counts = {
            name: Counter(subscription["counts"])
            for name, subscription in self._subscriptions.items()
            if self._is_a_shards(name)
        }
        for name, last in self._last.items():
            if name not in counts or counts[name]["delivered"] < last["delivered"]:
                self._past += last
        self._last = counts

    def _is_a_shards(self, name: str) -> bool:
        spec = self.local.spec
        return name != topology.dead_letter_subscription(spec) and not topology.is_strays(spec, name)

    def _count(self, what: str) -> int:
        return self._past[what] + sum(counts[what] for counts in self._last.values())

    def _keep_history(self, report: Report, truth: Truth) -> None:
        self._write("schedule.json", [dataclasses.asdict(planned) for planned in self.schedule])
        self._write("history.json", [dataclasses.asdict(event) for event in report.history])
        self._write("findings.json", [dataclasses.asdict(finding) for finding in report.findings])
        self._write("broker.json", self._subscriptions)
        acked = frozenset(truth.acked)
        self._write("writes.json", [{**dataclasses.asdict(op), "acked": op.key in acked} for op in truth.begun])

    def _write(self, name: str, data: Any) -> None:
        (self.local.directory / name).write_text(json.dumps(data, indent=1, default=str))

"""Adds a shard to the whole fleet under load, and lets the oracle judge the outcome."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shardctl import atomicfile
from shardctl.broker.faults import Faults
from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec import Fleet
from shardctl.local import demo, history, oracle, slotmap
from shardctl.local.feed import Feed
from shardctl.local.fleet import POLL_SECONDS, LocalFleet, new_folder
from shardctl.local.follow import Watched, next_file
from shardctl.local.load import Stream
from shardctl.local.moving import Moving
from shardctl.local.onecommand import OneCommand, moment_of, progress_of
from shardctl.local.oracle import Verdict
from shardctl.local.pauses import Effect, Pauses, Times
from shardctl.local.slotmap import SlotMap
from shardctl.rebalance.run import Progress

BEFORE_SECONDS, AFTER_SECONDS = 6.0, 2.0  # of load with nothing else going on
DRAIN_SECONDS = 60.0
LOOK_SECONDS = 0.5
HOLD = "1h"  # longer than it takes to measure what only the sources' copies show


@dataclass(frozen=True, slots=True)
class Plan:
    """What to publish, and where the run goes: to a folder of its own in `directory`."""

    directory: Path
    writes_per_second: float = 300.0
    entities: int = 5_000
    seed: int = 1
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Seconds of the steps, and of pauses by quantile.

    `pause` runs from publish to commit, of the longest write of each slot; `closed` from a moved slot's barrier to the commit
    that let its new shard write. None where the databases don't report when they commit, as SQLite doesn't.
    """

    verified: bool
    seed: int
    slots_before: dict[str, int]
    slots_after: dict[str, int]
    slots_moved: int
    slots_moved_minimum: int
    writes: int
    published: int
    publisher_duplicates: int
    redelivered: int
    applied: int
    dead_letters: int
    strays: int
    restarts: int
    seconds: dict[str, float]
    pause: dict[str, float] | None
    closed: dict[str, float] | None
    unmoved_pause: dict[str, float] | None
    unmoved_rate_before: float | None
    unmoved_rate_during: float | None
    unmoved_rate_ratio: float | None
    differences: dict[str, int]
    examples: tuple[str, ...]
    kept_in: str | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Watch(Protocol):
    """Receives the run's progress."""

    def done(self, what: str) -> None:
        """A stage has ended."""

    def warn(self, what: str) -> None:
        """Something unexpected happened."""

    def slots(self, slot_map: SlotMap, title: str) -> None:
        """Who holds which slots, before or after."""

    def moving(self, slot_map: SlotMap, progress: Progress) -> None:
        """The same during the move, repeatedly."""


def run(fleet: Fleet, plan: Plan, watch: Watch) -> Report:
    """Start, load, move, finish, drain, judge, stop. Raises ShardctlError when it can't come to a verdict."""
    faults = Faults(seed=plan.seed, duplicate_rate=demo.REDELIVERY_RATE)
    local = LocalFleet(history.recorded(fleet), new_folder(plan.directory), faults=faults, keep=plan.keep)
    try:
        _start(local, watch)
        report = _Show(local, history.numbered(fleet), plan, watch).run()
        local.keep |= not report.verified
    except ShardctlError:
        local.keep = True  # the logs show why
        raise
    finally:
        local.stop()
        if not local.keep:
            shutil.rmtree(local.directory, ignore_errors=True)
    return dataclasses.replace(report, kept_in=str(local.directory) if local.keep else None)


def _start(local: LocalFleet, watch: Watch) -> None:
    local.start_servers()
    local.provision()
    for shard in local.spec.shards:
        history.keep(local.spec, shard, local.database_url(shard.name))
    watch.done(f"broker (REST: {local.broker.rest_url}), Redis and {len(local.databases)} databases up")
    local.start_consumers()
    watch.done(f"{len(local.consumers)} consumers ready, {len(local.consumers) // len(local.replicas)} for each shard")


class _Show:
    """The steps on the running fleet, and their measurements."""

    def __init__(self, local: LocalFleet, fleet: Fleet, plan: Plan, watch: Watch) -> None:
        self.local, self.plan, self.watch = local, plan, watch
        stream = Stream(fleet, None, plan.entities, plan.seed)
        self.feed = Feed(local.spec, local.broker.host, stream, writes_per_second=plan.writes_per_second)
        self.moving = Moving.adding(local, _free_name(local.spec))
        self.seconds: dict[str, float] = {}
        self.subscriptions: dict[str, dict[str, Any]] = {}  # their last known state; of deleted ones, the state before
        self._looked = 0.0
        self.file = local.directory / "shards.yaml"
        text = json.dumps(local.spec.model_dump(mode="json", exclude_defaults=True), indent=1)
        atomicfile.write(self.file, text.encode())
        self._watched, self._next = Watched(self.file), Watched(next_file(self.file), new=True)
        local.follow(self.file)

    def run(self) -> Report:
        self.feed.start()
        try:
            times, before, after = self._move()
            effect = self.moving.effect(times, self.feed.published_at)
            self._finish()
        finally:
            self.feed.stop()
        self.local.wait_drained(DRAIN_SECONDS, meanwhile=self._look_after)
        self.watch.done(f"{self.feed.published:,} messages published and settled")
        verdict = oracle.verify(self.local.spec, self.feed.writes, self.local.databases)
        self.watch.done("every row, its history and every record read back and judged")
        return self._report(verdict, effect, before, after)

    def _move(self) -> tuple[Times, SlotMap, SlotMap]:
        """By one command, which is killed once every slot has moved: what that took is measured before it finishes."""
        moving, quiet = self.moving, time.time()
        self._pass(BEFORE_SECONDS)
        go = self._go("--add", moving.new[0], "--like", moving.plan.before.shards[0].name, "--hold", HOLD)
        try:
            opened = self._until(go, "start", "begun")
            started = self._until(go, "start", "done")
            before = self._map()
            self.watch.slots(before, "before")
            self.watch.done(
                f"{', '.join(moving.new)} added: {moving.plan.moved:,} slots are to move, {moving.plan.minimum:,} at least"
            )
            began = self._until(go, "run", "begun")
            self.watch.done("consumers replaced one by one: they read both generations now")
            ended = self._until(go, "run", "done")
            after = self._map()
            self.watch.slots(after, "after")
            self.watch.done(f"{after.moved_since(before):,} slots handed over while writes went on")
            self._until(go, "hold", "begun")
        finally:
            go.kill()
        self.seconds |= {"start": started - opened, "roll": began - started, "run": ended - began}
        return Times(quiet, opened, began, ended), before, after

    def _finish(self) -> None:
        """By the same command, run again."""
        self._pass(AFTER_SECONDS)
        self.subscriptions |= self.local.subscriptions()
        go = self._go()
        try:
            began = self._until(go, "finish", "begun")
            self.seconds["finish"] = self._until(go, "finish", "done") - began
        finally:
            go.kill()  # what was left was to say so
        while self.local.spec.rebalancing:
            self._pass(POLL_SECONDS)
        self.watch.done("moved rows and old subscriptions deleted, consumers replaced again")
        self._pass(AFTER_SECONDS)

    def _go(self, *arguments: str) -> OneCommand:
        return OneCommand(self.local.directory, self.file, self.local.environment(), *arguments)

    def _until(self, go: OneCommand, step: str, state: str) -> float:
        """Look after everything until the command has come so far; when it had, in seconds since 1970."""
        while True:
            for event in go.events():
                if event["state"] == "progress":
                    self._show_move(progress_of(event))
                if (event["step"], event["state"]) == (step, state):
                    return moment_of(event)
            self._look_after()
            time.sleep(POLL_SECONDS)

    def _pass(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look_after()
            time.sleep(POLL_SECONDS)

    def _look_after(self) -> None:
        if not self.feed.running:
            self.feed.join()  # raises what ended it
        for consumer in self.local.revive():
            self.watch.warn(f"{consumer.name} ended unexpectedly (see {consumer.log_file}); restarted")

        self._follow()

    def _follow(self) -> None:
        """As `shardctl up` does. A new database keeps the history of its rows before the file brings consumers to it."""
        if self._next.changed():
            fleet = load_fleet(self._next.path)
            for name in self.local.prepare(fleet):
                self.moving.databases[name] = self.local.database_url(name)
                history.keep(fleet, fleet.shard(name), self.moving.databases[name])
        if self._watched.changed():
            self.local.apply(load_fleet(self.file))

    def _show_move(self, progress: Progress) -> None:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self.watch.moving(self._map(), progress)

    def _map(self) -> SlotMap:
        return slotmap.read(self.local.spec, self.moving.group, self.moving.databases)

    def _report(self, verdict: Verdict, effect: Effect | None, before: SlotMap, after: SlotMap) -> Report:
        self.subscriptions |= self.local.subscriptions()
        subscriptions, spec = self.subscriptions, self.local.spec
        dead = subscriptions[topology.dead_letter_subscription(spec)]["undelivered"]
        strays = sum(
            standing["undelivered"] for name, standing in subscriptions.items() if topology.is_strays(spec, name)
        )
        counts = [Counter(standing["counts"]) for standing in subscriptions.values()]
        return Report(
            verified=verdict.ok and not dead and not strays,
            seed=self.plan.seed,
            slots_before={shard.name: len(shard.slots) for shard in self.moving.plan.before.shards},
            slots_after={shard.name: len(shard.slots) for shard in spec.shards},
            slots_moved=after.moved_since(before),
            slots_moved_minimum=self.moving.plan.minimum,
            writes=len(self.feed.writes),
            published=self.feed.published,
            publisher_duplicates=self.feed.duplicates,
            redelivered=sum(max(0, count["delivered"] - count["acked"]) for count in counts),
            applied=sum(shard.applied for shard in verdict.shards),
            dead_letters=dead,
            strays=strays,
            restarts=sum(consumer.restarts for consumer in self.local.consumers),
            seconds={name: round(seconds, 1) for name, seconds in self.seconds.items()},
            pause=_quantiles(effect.moved) if effect else None,
            closed=_quantiles(effect.closed) if effect else None,
            unmoved_pause=_quantiles(effect.unmoved) if effect else None,
            unmoved_rate_before=round(effect.rate_before, 1) if effect else None,
            unmoved_rate_during=round(effect.rate_during, 1) if effect else None,
            unmoved_rate_ratio=round(effect.rate_ratio, 3) if effect else None,
            differences=verdict.counts,
            examples=tuple(map(str, demo.examples(verdict.findings))),
        )


def _free_name(fleet: Fleet) -> str:
    taken = {shard.name for shard in fleet.shards}
    return next(name for number in range(len(taken) + 1) if (name := f"s{number}") not in taken)


def _quantiles(pauses: Pauses | None) -> dict[str, float] | None:
    if pauses is None:
        return None
    return {
        "slots": pauses.slots,
        "p50": round(pauses.p50, 3),
        "p99": round(pauses.p99, 3),
        "max": round(pauses.longest, 3),
    }

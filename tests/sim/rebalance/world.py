"""One schedule, played: shards with their replicas, a topic, an executor that people start, and the oracle's verdict."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consumer.database.dialects import SQLite
from consumer.delivery import read_anew
from consumer.errors import TransientError
from consumer.intake.pull import Intake
from consumer.pubsub.deadletters import DeadLetterTopic
from consumer.pubsub.publishing import Again
from consumer.redis.breaker import RedisBreaker
from consumer.redis.lock import SlotLocks
from consumer.replica.handle import Handler
from consumer.replica.lifecycle import NotDrainedError, Replica
from consumer.sinks.sql import SqlSink
from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.shardconfig import ShardConfig, slice_of
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.journal import PointOfNoReturnError
from shardctl.rebalance.planning.way_back import Goal, fleet_led
from shardctl.shard import parked
from shardctl.wire import barrier
from shardctl.wire.barrier import Barrier
from tests.sim.broker import Subscriber
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Network
from tests.sim.rebalance.executor import DiedError, Effects, Executor, RefusedError
from tests.sim.rebalance.message import SLOTS, Write
from tests.sim.rebalance.oracle import MovingOracle
from tests.sim.rebalance.reads import Application
from tests.sim.rebalance.scenario import SHARDS, Scenario, fleet_of, led_to, next_file
from tests.sim.rebalance.shard import ShardDatabase, ShardStore
from tests.sim.rebalance.topic import Publisher, Topic
from tests.sim.redis import RedisClient, RedisServer
from tests.sim.world import LOOK_SECONDS, METRICS, PROJECT, Life, Result, World, played

PATIENCE_SECONDS = (
    150.0  # from calm to the end of the script and an empty backlog: some barriers wait for their repetition
)
RELEASE_SECONDS = 2.0
AGAIN_SECONDS = 0.7  # until people type a command again


@dataclass(slots=True)
class Parts:
    """The classes under test. A mutant replaces one of them: the simulation must notice."""

    replica: type[Replica] = Replica
    handler: type[Handler] = Handler
    intake: type[Intake] = Intake
    store: type[ShardStore] = ShardStore
    executor: type[Executor] = Executor
    patch: Callable[[Replica], None] = lambda _: None
    application: type[Application] | None = None  # one that reads


@dataclass(slots=True)
class MovingResult(Result):
    effects: list[str] = field(default_factory=list)  # of the executor
    lives: dict[tuple[int, int], int] = field(default_factory=dict)  # steps of each replica's each process
    again: int = 0  # messages that consumers have published once more
    again_counted: int = 0  # by their metrics
    reads: int = 0  # of the application that had an answer


def play(scenario: Scenario, parts: Parts | None = None, *, logs: bool = False) -> MovingResult:
    """Run a schedule to its end or its first violation. Deterministic: the scenario decides everything."""
    return played(MovingWorld(scenario, parts or Parts()), scenario.seed, logs=logs)


class _Databases:
    """What a world asks of its database."""

    fail_commit = 0.0

    def fail_over(self) -> None:
        """Transactions take no time here, so none is cut off."""

    def disconnect(self, process: Process) -> None:
        """The same."""

    def unlock_rows(self) -> None:
        """The same: nobody waits for a row."""

    def activate(self) -> None:
        """Lanes are the executor's business."""


class MovingWorld(World):
    def __init__(self, scenario: Scenario, parts: Parts) -> None:
        seed = scenario.seed
        self._scenario, self._parts = scenario, parts
        self.loop = SimLoop(seed)
        self.databases = {name: ShardDatabase(name) for name in SHARDS}
        self.oracle = MovingOracle(self.loop.time, scenario.writes, scenario.orders, self.loop.halt, self.databases)
        self.network = self._network = Network(self.loop, seed, self.oracle.misfortune)
        self._network.weather = scenario.weather
        self._network.in_flight_dies_with_sender = scenario.in_flight_dies_with_sender
        self._redis = RedisServer(self.loop.time, seed)
        self._redis.break_takes = scenario.break_takes
        self._database = _Databases()
        self._database.fail_commit = scenario.fail_commit
        self.topic = Topic(self.loop, self._network, self.oracle, seed, scenario.orders, scenario.habits)
        self.oracle.topic = self.topic
        self._brokers = self.topic.brokers
        self.fleet = fleet_of(scenario.owners[0], json.dumps(scenario.settings))
        self._planned = 0
        self._configs: dict[str, ShardConfig] = {}
        self._lives = [None] * (scenario.replicas * len(SHARDS))
        self._ever: list[Life] = []
        self._reads: dict[Life, ShardConfig] = {}
        self._calm = self._closing = False
        self._draw = random.Random(f"{seed} world").random
        self._hostile = random.Random(f"{seed} hostile")
        self._script = ["next", *scenario.script]
        self._changed_mind = self._aborted_twice = False
        self._executors: dict[Process, Executor] = {}
        self._executor_count = 0
        self.effects = Effects({crash.effect: crash.when for crash in scenario.crashes})
        self._writes = {write.number: write for write in scenario.writes}
        made = parts.application
        self.application = made and made(self.loop, self.network, self.oracle, self.fleet, seed)

    def play(self) -> MovingResult:
        scenario, loop = self._scenario, self.loop
        counted = METRICS.published_again._value.get()
        for shard in self.fleet.shards:
            self.databases[shard.name].provision(self.fleet.message_types, shard.slots, shard.generation)
            for sub in topology.subscriptions(self.fleet, shard):
                self.topic.subscribe(f"projects/{PROJECT}/subscriptions/{sub.id}", sub.slots)
        for name in SHARDS:
            self.databases[name].provision(self.fleet.message_types, type(shard.slots)(), 1)
            self.observe(self.databases[name], "setup")
        self._deploy(self.fleet, at_once=True)
        for publication in scenario.publications:
            loop.after(publication.at, self._publish, publication.write)
        for fault in scenario.faults:
            loop.after(fault.at, self._strike, fault)
        if self.application is not None:
            loop.spawn(self.application.process, self.application.run())
        loop.after(0.3, self._start_executor)
        loop.after(scenario.person_seconds, self._look_at_parked)
        if scenario.hostile:
            loop.after(0.0, self._forge)
        last = max((publication.at for publication in scenario.publications), default=0.0)
        loop.after(max(scenario.calm_at, last), self._calm_down)
        loop.run(until=max(scenario.calm_at, last) + PATIENCE_SECONDS * 2)
        if not self.oracle.violations:
            for error in loop.faults:
                self.oracle.violate(error)
            wanted = {sub.id for shard in self.fleet.shards for sub in topology.every_subscription(self.fleet, shard)}
            there = {path.rpartition("/")[2] for path in self._brokers}
            self.oracle.check_settled(self.fleet, self._backlog(), there, wanted)
        for process, executor in self._executors.items():
            process.alive = False
            executor.kill()
        if self.application is not None:
            self.application.process.alive = False
            self.application.kill()
        for life in filter(None, self._lives):
            life.process.alive = False
        loop.clear_away()
        for broker in self._brokers.values():
            broker.close()
        return MovingResult(
            self.oracle.violations,
            self.oracle,
            [life.process.steps for life in self._ever],
            loop.time(),
            self.effects.done,
            {tuple(map(int, life.process.name[1:].split("."))): life.process.steps for life in self._ever},
            self.topic.again,
            int(METRICS.published_again._value.get() - counted),
            self.application.reads if self.application else 0,
        )

    def observe(self, shard: ShardDatabase, who: object) -> None:
        self.oracle.observe(shard, who, copies=str(who).startswith("x"))

    def _backlog(self) -> list[Any]:
        return self.topic.backlog()

    def _publish(self, write: Write) -> None:
        self.topic.publish(write, write.data, write.attributes, "producer")

    def _forge(self) -> None:
        """Somebody who may publish, and can read the topic and the journals, ends whatever lane they can."""
        name = self._hostile.choice(SHARDS)
        lanes = sorted(self.oracle.active[name].items())
        ids = [row_id for shard in self.databases.values() for row_id in shard.rebalance_ids()]
        if lanes and ids:
            slot, generation = self._hostile.choice(lanes)
            token = self._hostile.choice(("", "guess", *self.topic.tokens))
            marker = Barrier(self._hostile.choice(ids), name, generation, token)
            forged = barrier.encode(self.fleet, self.fleet.shards[0], slot, marker)
            self.topic.publish(None, forged.data, forged.attributes, "hostile")
        if not self._calm:
            self.loop.after(self._hostile.random() * 0.3, self._forge)

    def _write_of(self, data: bytes) -> Write:
        """What a message that a consumer publishes again carries."""
        number = int(json.loads(data.removesuffix(b"}") + b"}")["id"].rpartition("-")[2])
        return self._writes[number]

    # -- replicas ----------------------------------------------------------------------------------------------------

    def _shard_of(self, index: int) -> str:
        return SHARDS[index // self._scenario.replicas]

    def _deploy(self, fleet: Fleet, *, at_once: bool = False) -> None:
        """Pods are replaced one after the other where their configuration has changed."""
        wanted = {shard.name: slice_of(fleet, shard) for shard in fleet.shards}
        generations = {
            name: [generation.number for generation in config.generations] for name, config in wanted.items()
        }
        self.oracle.tell("people", "deploy", generations)
        self._configs = wanted
        for index in range(len(self._lives)):
            self.loop.after(0.0 if at_once else self._draw() * 2.0, self._roll, index)

    def _roll(self, index: int) -> None:
        life = self._lives[index]
        if life is None:
            self._start(index)
        elif self._reads[life] != self._configs.get(self._shard_of(index)):
            self._stop(life)

    def _start(self, index: int) -> None:
        config = self._configs.get(self._shard_of(index))
        if config is not None:
            super()._start(index)
            if life := self._lives[index]:
                self._reads.setdefault(life, config)

    async def _live(self, life: Life) -> None:
        """What `consumer.process.run.serve` does, with the simulated services."""
        name = self._shard_of(life.index)
        config, parts, clock = self._reads[life], self._parts, self.loop.time
        redis = RedisClient(self.loop, self._network, self._redis, config.consumer.redis_timeout_ms / 1000)
        ttl_ms = int(config.consumer.lock_ttl.total_seconds() * 1000)
        locks = SlotLocks(redis, RedisBreaker(clock, METRICS), f"{config.fleet}:{config.shard}", ttl_ms, METRICS)
        intake = parts.intake(
            Subscriber(self.loop, self._network, self._brokers), config, clock, METRICS, slow_start=False
        )
        publisher = Publisher(self.loop, self._network, self.oracle, self.topic, self._write_of)
        store = parts.store(
            self.loop, self._network, self.databases[name], config, self.observe,
            lambda: self._draw() < self._database.fail_commit,
        )  # fmt: skip
        letters, again = DeadLetterTopic(publisher, config), Again(publisher, config)
        handler = parts.handler(locks, store, letters, again, intake, None, METRICS, clock)
        sink = SqlSink(SQLite(), config.message_types)
        replica = parts.replica(config, sink, intake, handler, METRICS, clock)
        parts.patch(replica)
        read = functools.partial(read_anew, check=sink.check, config=config)
        releasing = asyncio.create_task(_release(store, read, life.stop), name="release")
        try:
            await replica.run(life.stop)
        except NotDrainedError as error:  # batches in flight are redelivered elsewhere
            self.oracle.tell(life.process, str(error))
        except Exception as error:
            if not life.process.alive:  # it is being cleared away
                raise
            self.oracle.violate(f"{life.process} died of {error!r}")  # of a bug, that is
        releasing.cancel()
        self.loop.after(0.0, self._exited, life)

    def _database_down(self, seconds: float) -> None:
        self._down(f"database {SHARDS[int(self._draw() * len(SHARDS))]}", seconds)

    # -- people ------------------------------------------------------------------------------------------------------

    def _look_at_parked(self) -> None:
        """Somebody drops the head of each parked key: what waits behind it is released."""
        for name, shard in self.databases.items():
            with shard.consumers.begin() as connection:
                for key in parked.keys(connection, name):
                    if not key.released:
                        head = parked.messages(connection, key)[0]
                        if parked.drop(connection, key):
                            self.oracle.dropped(key.slot, head.identity)
        self.loop.after(2.0 if self._calm else self._scenario.person_seconds, self._look_at_parked)

    def _start_executor(self, command: str | None = None) -> None:
        """One that works off the script, or does one command beside it."""
        if self._script and not self._closing:
            process = Process(f"x{self._executor_count}")
            self._executor_count += 1
            self.loop.spawn(process, self._work(process, command))

    def _kill_executor(self, _: float) -> None:
        for process, executor in list(self._executors.items()):
            self._executor_dies(process, executor)

    def _freeze_executor(self, seconds: float) -> None:
        for process in self._executors:
            self.oracle.tell(process, "freezes")
            self.loop.freeze(process)
            self.loop.after(seconds, self.loop.thaw, process)

    def _executor_dies(self, process: Process, executor: Executor) -> None:
        self.oracle.tell(process, "dies")
        self.loop.kill(process)
        executor.kill()
        del self._executors[process]
        if executor.beside:
            return
        other, command = self._scenario.after_crash, self._script[0]
        if other and not self._changed_mind and command in self._scenario.after_crash_in:
            self._changed_mind = True
            self._script = [*(["start"] if command == "start" else []), *other]
        self.loop.after(self._draw() * 2.0, self._start_executor)

    async def _work(self, process: Process, command: str | None) -> None:
        while self._script:
            executor = self._parts.executor(
                self,
                process,
                self.fleet,
                self._scenario.manners,
                self._scenario.few_rows,
                f"{self._scenario.seed} {process}",
            )
            executor.beside = command is not None
            self._executors[process] = executor
            try:
                await self._type(executor, command or self._script[0])
            except DiedError:
                self.loop.after(0.0, self._died, process, executor)
                await asyncio.get_running_loop().create_future()  # until it is cleared away
            except (RefusedError, ShardctlError) as error:
                self.oracle.tell(process, f"refuses to {command or self._script[0]}: {error}")
                if command:
                    break
                if self._aborted_twice and self._script[0] in {"run", "part", "finish"}:
                    self._script.insert(0, "start")  # the other one may have aborted what was started again
                if isinstance(error, PointOfNoReturnError):
                    self._script = ["finish"]
                await asyncio.sleep(AGAIN_SECONDS * (0.5 + self._draw()))
            except Exception as error:
                if not process.alive:  # it is being cleared away
                    raise
                self.oracle.violate(f"{process} died of {error!r}")  # of a bug, that is
                break
            else:
                if command:
                    break
                self._script.pop(0)
        self._executors.pop(process, None)

    def _died(self, process: Process, executor: Executor) -> None:
        if self._executors.get(process) is executor:
            self._executor_dies(process, executor)

    async def _type(self, executor: Executor, command: str) -> None:
        self.oracle.tell(executor.process, f"shardctl rebalance {command}")
        if command == "next":
            self._planned += 1
            self.fleet = next_file(self.fleet, self._scenario.owners[self._planned])
        elif command in {"back", "forward", "some back", "some forward"}:
            goal = Goal.FORWARD if command.endswith("forward") else Goal.BACK
            some = SlotSet.of(slot for slot in SLOTS if self._draw() < 0.5)
            choices = (some, SlotSet.of(SLOTS) - some) if command.startswith("some") else (None,)
            self.fleet = next(filter(None, (fleet_led(self.fleet, goal, slots) for slots in choices)), self.fleet)
        elif command in {"again", "home"}:
            self.fleet = led_to(self.fleet, self._scenario.owners[self._planned - (command == "home")])
        elif command == "start":
            await executor.start()
            self._deploy(self.fleet)
            await asyncio.sleep(self._scenario.run_at)
        elif command == "part":
            await executor.run(seconds=self._draw() * 3.0)
        elif command == "run":
            if self._scenario.second_executor and not executor.beside:
                self.loop.after(self._draw() * 2.0, self._start_executor, "run")
            if not (await executor.run()).complete:
                raise RefusedError("not every slot was handed over")
        elif command == "abort":
            if self._scenario.second_executor and not executor.beside:
                self._aborted_twice = True
                self.loop.after(self._draw() * 0.2, self._start_executor, "abort")
            await executor.abort()
        elif command == "finish":
            await executor.finish()
            self.fleet = self.fleet.settled()
            self._deploy(self.fleet)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self._scenario.manners.behave()
        super()._calm_down(PATIENCE_SECONDS)

    def _look(self, until: float) -> None:
        """Wait for people and backlog to be done, then stop everything and wait for that."""
        lives = [life for life in self._lives if life is not None]
        up = all(
            (life is not None and self._reads.get(life) == self._configs[name])
            if name in self._configs
            else life is None
            for index, life in enumerate(self._lives)
            for name in [self._shard_of(index)]
        )
        if self._closing:
            if not lives:
                self.loop.halt()
        elif not self._script and up and not self._backlog() and not any(d.parked() for d in self.databases.values()):
            self._closing = True
            for life in lives:
                self._stop(life)
        elif self.loop.time() > until:
            self.oracle.violate(
                f"{PATIENCE_SECONDS:.0f} s of calm, and still to do: {self._script}, to ack: {self._backlog()}, "
                f"parked: {[d.parked() for d in self.databases.values()]}, {'' if up else 'replicas not up'}"
            )
        self.loop.after(LOOK_SECONDS, self._look, until)


async def _release(store: ShardStore, read: Callable[[Any], None], stop: asyncio.Event) -> None:
    """What `consumer.replica.maintenance` does about parked keys that a person has released."""
    while not stop.is_set():
        await asyncio.sleep(RELEASE_SECONDS * (0.5 + random.random()))
        try:
            for key in await store.released_keys():
                while not stop.is_set():
                    released = await store.release(key, read)
                    if released is None or not released.more:
                        break
        except TransientError:
            continue

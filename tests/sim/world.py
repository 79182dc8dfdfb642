"""One schedule, played: replicas of one shard, the services around them, faults on time, and the oracle's verdict."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.api_core.exceptions import ServiceUnavailable

from consumer.database.dialects import SQLite
from consumer.intake.pull import Intake
from consumer.observability.metrics import Metrics
from consumer.pubsub.deadletters import DeadLetterTopic
from consumer.pubsub.publishing import Again
from consumer.redis.breaker import RedisBreaker
from consumer.redis.lock import SlotLocks
from consumer.replica.handle import Handler
from consumer.replica.lifecycle import NotDrainedError, Replica
from consumer.sinks.sql import SqlSink
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.shardconfig import ShardConfig, slice_of
from tests.sim.broker import Broker, Subscriber
from tests.sim.database import Database, SimStore
from tests.sim.loop import Process, SimLoop
from tests.sim.message import SLOT_BITS, Message, Poison
from tests.sim.network import Answer, Network
from tests.sim.oracle import Oracle
from tests.sim.redis import RedisClient, RedisServer
from tests.sim.scenario import Fault, Scenario, Trap
from tests.sim.sqlstore import SqlDatabase, SqlStore

PROJECT = "simulation"
PATIENCE_SECONDS = 240.0  # from calm to an empty backlog
EXIT_SECONDS = 60.0  # from SIGTERM to exit, of a replica that isn't frozen
LOOK_SECONDS = 0.5
LONG_LOCK = 5.0  # times as long as other faults last
METRICS = Metrics()  # one for all: nothing here reads them, and making them is slow


@dataclass(slots=True)
class Parts:
    """The classes under test. A mutant replaces one of them: the simulation must notice."""

    replica: type[Replica] = Replica
    handler: type[Handler] = Handler
    locks: type[SlotLocks] = SlotLocks
    intake: type[Intake] = Intake
    store: type[SimStore] = SimStore
    patch: Callable[[Replica], None] = lambda _: None  # for what a replica makes itself


@dataclass(slots=True)
class Result:
    violations: list[str]
    oracle: Oracle
    steps: list[int]  # that each replica's first process took
    seconds: float  # of virtual time


@dataclass(eq=False, slots=True)
class Life:
    """One process of one replica, from its start to its end."""

    index: int
    process: Process
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stopping_since: float | None = None


def play(scenario: Scenario, parts: Parts | None = None, *, logs: bool = False) -> Result:
    """Run a schedule to its end or its first violation. Deterministic: the scenario decides everything."""
    return played(World(scenario, parts or Parts()), scenario.seed, logs=logs)


def played(world: World, seed: int, *, logs: bool = False) -> Result:
    state = random.getstate()
    random.seed(f"{seed} consumer")  # the consumer's own jitter
    logger = logging.getLogger("consumer")
    level, propagate = logger.level, logger.propagate
    teller = _Teller(world.oracle, world.loop)
    logger.setLevel(logging.INFO if logs else logging.CRITICAL + 1)
    logger.propagate = False
    logger.addHandler(teller)
    try:
        return world.play()
    finally:
        logger.removeHandler(teller)
        logger.setLevel(level)
        logger.propagate = propagate
        random.setstate(state)


class World:
    def __init__(self, scenario: Scenario, parts: Parts) -> None:
        seed = scenario.seed
        self._scenario, self._parts = scenario, parts
        self.loop = SimLoop(seed)
        self.oracle = Oracle(
            self.loop.time, [publication.message for publication in scenario.publications], self.loop.halt
        )
        self._network = Network(self.loop, seed, self.oracle.misfortune)
        self._network.weather = scenario.weather
        self._network.in_flight_dies_with_sender = scenario.in_flight_dies_with_sender
        self._config = _config(json.dumps(scenario.settings), scenario.subscriptions)
        self._redis = RedisServer(self.loop.time, seed)
        self._redis.break_takes = scenario.break_takes
        timeout = self._config.consumer.statement_timeout.total_seconds()
        if scenario.real_store:
            self._database = SqlDatabase(self.loop, self.oracle, seed, self._config, scenario.arriving)
        else:
            self._database = Database(self.loop, self.oracle, seed, timeout)
            self._database.arriving = set(scenario.arriving)
        self._database.fail_commit = scenario.fail_commit
        deadly = [
            publication.message.number
            for publication in scenario.publications
            if publication.message.poison is Poison.DEADLY
        ]
        self._database.deadly, self._database.kill = frozenset(deadly), self._die
        for key in scenario.locked:
            self._database.lock_row(key)
        self.oracle.arriving = self._database.arriving
        self.oracle.recorded = self._database.recorded
        self._subscriptions = self._config.generations[0].subscriptions
        self._brokers = {
            f"projects/{PROJECT}/subscriptions/{name}": Broker(self.loop, self._network, self.oracle, seed, name)
            for name in self._subscriptions
        }
        for broker in self._brokers.values():
            broker.habits = scenario.habits
        self._lives: list[Life | None] = [None] * scenario.replicas
        self._ever: list[Life] = []
        self._suspects = Suspects()
        self._calm = self._closing = False
        self._draw = random.Random(f"{seed} world").random

    def play(self) -> Result:
        scenario, loop = self._scenario, self.loop
        for index in range(scenario.replicas):
            self._start(index)
        for publication in scenario.publications:
            loop.after(publication.at, self._broker_of(publication.message).publish, publication.message)
        for fault in scenario.faults:
            loop.after(fault.at, self._strike, fault)
        last = max((publication.at for publication in scenario.publications), default=0.0)
        loop.after(max(scenario.calm_at, last), self._calm_down)
        loop.run(until=scenario.calm_at + last + PATIENCE_SECONDS + EXIT_SECONDS)
        if not self.oracle.violations:
            for error in loop.faults:
                self.oracle.violate(error)
            self.oracle.check_end(self._database.log, self._backlog())
        for life in filter(None, self._lives):
            life.process.alive = False
        loop.clear_away()
        self._database.close()
        for broker in self._brokers.values():
            broker.close()
        return Result(
            self.oracle.violations,
            self.oracle,
            [life.process.steps for life in self._ever[: scenario.replicas]],
            loop.time(),
        )

    def _broker_of(self, message: Message) -> Broker:
        brokers = list(self._brokers.values())
        return brokers[int(message.lane, 2) * len(brokers) >> SLOT_BITS]

    def _backlog(self) -> list[Message]:
        return [message for broker in self._brokers.values() for message in broker.backlog()]

    # -- replicas ----------------------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        if self._lives[index] is not None or self._closing:
            return
        number = sum(life.index == index for life in self._ever)
        life = Life(index, Process(f"r{index}.{number}"))
        for trap in self._scenario.traps:
            if (trap.replica, trap.life) == (index, number):
                life.process.trap(trap.step, functools.partial(self._spring, life, trap))
        self._lives[index] = life
        self._ever.append(life)
        self.oracle.misfortune(life.process, "starts")
        self.loop.spawn(life.process, self._live(life))

    async def _live(self, life: Life) -> None:
        """What `consumer.process.run.serve` does, with the simulated services."""
        config, parts, clock = self._config, self._parts, self.loop.time
        redis = RedisClient(self.loop, self._network, self._redis, config.consumer.redis_timeout_ms / 1000)
        ttl_ms = int(config.consumer.lock_ttl.total_seconds() * 1000)
        locks = parts.locks(redis, RedisBreaker(clock, METRICS), f"{config.fleet}:{config.shard}", ttl_ms, METRICS)
        subscriber = Subscriber(self.loop, self._network, self._brokers)
        intake = parts.intake(
            subscriber, config, clock, METRICS, slow_start=self._scenario.slow_start, suspects=self._suspects
        )
        publisher = _DeadLetterPublisher(self.loop, self._network, self.oracle)
        store = (SqlStore if self._scenario.real_store else parts.store)(self.loop, self._network, self._database)
        letters, again = DeadLetterTopic(publisher, config), Again(publisher, config)
        handler = parts.handler(locks, store, letters, again, intake, None, METRICS, clock)
        replica = parts.replica(config, SqlSink(SQLite(), config.message_types), intake, handler, METRICS, clock)
        parts.patch(replica)
        try:
            await replica.run(life.stop)
        except NotDrainedError as error:  # batches in flight are redelivered elsewhere
            self.oracle.tell(life.process, str(error))
        except Exception as error:
            if not life.process.alive:  # it is being cleared away
                raise
            self.oracle.violate(f"{life.process} died of {error!r}")  # of a bug, that is
        self.loop.after(0.0, self._exited, life)

    def _exited(self, life: Life) -> None:
        if not life.process.alive:
            return
        if life.stopping_since is None:
            self.oracle.violate(f"{life.process} ended unasked")
        for error in life.process.lost_errors():
            self.oracle.violate(error)
        self._end(life, "exits")

    def _end(self, life: Life, how: str, restart_after: float = 0.5) -> None:
        if self._lives[life.index] is not life:
            return
        self.oracle.tell(life.process, how)
        self._lives[life.index] = None
        self.loop.kill(life.process)
        self._database.disconnect(life.process)
        for broker in self._brokers.values():
            for stream in [stream_open for stream_open in broker.streams if stream_open.process is life.process]:
                self.loop.after(self._draw() * 0.5, broker.close_stream, stream)
        self.loop.after(restart_after, self._start, life.index)

    # -- faults, by the names that scenarios use -----------------------------------------------------------------------

    def _spring(self, life: Life, trap: Trap) -> None:
        """Also when all is calm otherwise: the last drain is cut short too."""
        getattr(self, f"_{trap.what}")(life, trap.seconds)

    def _strike(self, fault: Fault) -> None:
        if self._calm:
            return
        if fault.replica is None:
            getattr(self, f"_{fault.what}")(fault.seconds)
        elif life := self._lives[fault.replica]:
            getattr(self, f"_{fault.what}")(life, fault.seconds)

    def _kill(self, life: Life, seconds: float) -> None:
        self._end(life, "is killed", restart_after=min(seconds, 4.0))

    def _die(self, process: Process) -> None:
        life = next((life for life in self._lives if life and life.process is process), None)
        if life:
            self._end(life, "is killed by a message", restart_after=2.0)

    def _freeze(self, life: Life, seconds: float) -> None:
        self.oracle.misfortune(life.process, "freezes")
        self.loop.freeze(life.process)
        self.loop.after(seconds, self._thaw, life)

    def _thaw(self, life: Life) -> None:
        if life.process.frozen:
            self.oracle.misfortune(life.process, "thaws")
            self.loop.thaw(life.process)

    def _stop(self, life: Life, seconds: float = 0.0) -> None:
        if life.stopping_since is None:
            self.oracle.misfortune(life.process, "gets SIGTERM")
            life.stopping_since = self.loop.time()
            life.stop.set()
            self.loop.after(EXIT_SECONDS, self._check_exit, life)

    def _check_exit(self, life: Life) -> None:
        """A frozen process can't exit; from its thaw on it has all the time again."""
        if life.process.frozen:
            self.loop.after(EXIT_SECONDS, self._check_exit, life)
        elif self._lives[life.index] is life:
            self.oracle.violate(f"{life.process} is still there {EXIT_SECONDS:.0f} s after its SIGTERM")

    def _cut_streams(self, seconds: float) -> None:
        for broker in self._brokers.values():
            broker.cut_streams()

    def _flush_redis(self, seconds: float) -> None:
        self.oracle.tell("redis", "is flushed")
        self._redis.flush()

    def _fail_over(self, seconds: float) -> None:
        self.oracle.tell("database", "fails over")
        self._database.fail_over()

    def _lock_a_row(self, seconds: float) -> None:
        """Somebody's transaction holds the row of a key, and much longer than any statement may last."""
        keys = sorted({publication.message.key for publication in self._scenario.publications})
        key = keys[int(self._draw() * len(keys))]
        self.oracle.tell("database", f"the row of {key} is locked")
        self._database.lock_row(key)
        self.loop.after(seconds * LONG_LOCK, self._database.unlock_rows)

    def _redis_down(self, seconds: float) -> None:
        self._down("redis", seconds)

    def _database_down(self, seconds: float) -> None:
        self._fail_over(seconds)
        self._down("database", seconds)

    def _dead_letters_down(self, seconds: float) -> None:
        self._down("deadletters", seconds)

    def _pubsub_down(self, seconds: float) -> None:
        self._cut_streams(seconds)
        self._down("pubsub", seconds)

    def _down(self, service: str, seconds: float) -> None:
        self.oracle.tell(service, f"is down for {seconds} s")
        weather = self._network.weather[service]
        weather.down = True
        self.loop.after(seconds, setattr, weather, "down", False)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _calm_down(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Faults end; dead and frozen replicas are back soon. From here on everything must come to its end."""
        self.oracle.tell("world", "is calm from here on")
        self._calm = True
        for weather in self._network.weather.values():
            weather.clear_up()
        self._scenario.habits.behave()
        self._database.fail_commit = self._redis.break_takes = 0.0
        self._database.activate()
        self._database.unlock_rows()
        self._look(self.loop.time() + patience_seconds)

    def _look(self, until: float) -> None:
        """Wait for the backlog to be gone, then stop everything and wait for that."""
        lives = [life for life in self._lives if life is not None]
        if self._closing:
            if not lives:
                self.loop.halt()
        elif not self._backlog() and lives:
            self._closing = True
            for life in lives:
                self._stop(life)
        elif self.loop.time() > until:
            self.oracle.violate(f"{PATIENCE_SECONDS:.0f} s of calm, and still not acked: {self._backlog()}")
        self.loop.after(LOOK_SECONDS, self._look, until)


class Suspects:
    """Stands where `consumer.redis.suspects` does, and forgets nothing."""

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()

    async def deaths(self, message_id: str) -> int:
        return self._deaths[message_id]

    async def begin(self, message_id: str) -> None:
        self._deaths[message_id] += 1

    async def survived(self, message_id: str) -> None:
        del self._deaths[message_id]


class _DeadLetterPublisher:
    """Stands where `consumer.pubsub.calls.Publisher` does."""

    def __init__(self, loop: SimLoop, network: Network, oracle: Oracle) -> None:
        self._loop, self._network, self._oracle = loop, network, oracle

    async def publish(
        self,
        *,
        topic: str,
        messages: Sequence[Any],
        timeout_seconds: float,
    ) -> None:
        process = self._loop.current()

        def serve(answer: Answer) -> None:
            for message in messages:
                self._oracle.dead_lettered(process, message.attributes["shardctl-message-id"])
            answer(None)

        await self._network.request("deadletters", serve, timeout_seconds, ServiceUnavailable)


class _Teller(logging.Handler):
    """Puts what the consumer logs into the history."""

    def __init__(self, oracle: Oracle, loop: SimLoop) -> None:
        super().__init__()
        self._oracle, self._loop = oracle, loop

    def emit(self, record: logging.LogRecord) -> None:
        self._oracle.tell(self._loop.current(), f"[{record.getMessage()}]")


@functools.cache
def _config(settings: str, subscriptions: int) -> ShardConfig:
    """As `shardctl render` makes it. `settings` is JSON, and so is YAML."""
    text = f"""\
fleet: sim
project: {PROJECT}
image: example.com/consumer:1.0
routing: {{slot_bits: {SLOT_BITS}, topic_bits: {subscriptions - 1}}}
consumer: {settings}
message_types:
  twin:
    table: entries
    key: id
    routing_key: owner
    columns: {{id: text, owner: text, number: integer}}
  entry:
    table: entries
    key: id
    routing_key: owner
    columns: {{id: text, owner: text, number: integer}}
shards:
  - name: s0
    slots: "0-{(1 << SLOT_BITS) - 1}"
"""
    fleet = fleet_from(yamlfile.parse(text))
    return slice_of(fleet, fleet.shards[0])

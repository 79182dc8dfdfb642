"""One schedule of about ten weeks: producers, a shard, a Pub/Sub that brings writes again, people, and the oracle's verdict."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from consumer.delivery import Delivery
from consumer.pubsub.deadletters import DeadLetterTopic
from consumer.store.sweep import Retention
from consumer.store.transaction import Store
from shardctl.deadletter import letter as letters
from shardctl.deadletter.inboxes import Allowed, Inboxes
from shardctl.deadletter.letter import Message
from shardctl.deadletter.reading import Found
from shardctl.deadletter.replay import Report, in_order, replay
from shardctl.fleet import topology
from shardctl.fleet.keyspace import digits_of, slot_of
from tests.sim.memory.shard import CLOCK, CONFIG, FLEET, Shard, database
from tests.sim.memory.subscription import Copy, Dead, Subscription, buried

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
BEGINNING = 1_790_000_000.0
WRITES, WRITTEN_DAYS = 4, 14
LOOKS, PEOPLE_DAYS = 12, 55  # how often people look at letters, and within how long
END_DAYS = 75
MOST_LETTERS = 3  # that somebody chooses at a time
MOST_RETRIES = 3
PURGE_SECONDS = HOUR  # between two walks through the inbox
KEYS = [key for key in (f"k{number}" for number in range(100)) if slot_of(key, CONFIG.slot_bits) == 0][:WRITES]
SKEW = 20 * MINUTE  # of the database's clock and the desk's, to Pub/Sub's
RETRIED_WITHIN = topology.RETRIED_WITHIN.total_seconds() - 2 * HOUR  # the rest is for clocks, and for a row's time
RETENTION = FLEET.subscription.retention.total_seconds()
LETTER_DAYS = topology.KEPT_FOR_PEOPLE.days


def retention() -> Retention:
    """As `consumer.process.run` gives it to the purge."""
    return Retention(int(CONFIG.inbox_retention.total_seconds()), int(CONFIG.letter_retention.total_seconds()))


@dataclass(slots=True)
class Parts:
    """What is under test. A mutant replaces one of them: the simulation must notice."""

    store: type[Store] = Store
    inboxes: type[Inboxes] = Inboxes
    retention: Callable[[], Retention] = retention


@dataclass(frozen=True, slots=True)
class Habits:
    """How likely things are for each write, or each message of one."""

    parks: float = 0.3
    broken: float = 0.4  # it can't succeed at first
    broken_days: tuple[int, ...] = (20, 45)  # at most
    left_alone: float = 0.3  # nobody looks at its letter for a month
    retried: float = 0.8
    late: float = 0.5  # the retry comes half a day later, or more
    retry_buried: float = 0.25  # each consumer of the retry crashes, and Pub/Sub dead-letters it
    sought: float = 0.4  # somebody seeks back to it while Pub/Sub just retains it


# By turns. A mistake that needs several rare events to do harm has schedules in which they are likely.
HABITS = (
    Habits(),
    Habits(parks=1.0, broken=1.0, broken_days=(10,), retried=1.0, late=1.0, retry_buried=0.0, sought=0.7),
    Habits(parks=0.0, broken=0.0, retried=1.0, late=1.0, retry_buried=0.8, sought=0.1),
    Habits(parks=0.0, broken=1.0, left_alone=0.8),
)


class _KilledError(Exception):
    """The desk's process ends here."""


@dataclass(slots=True)
class Result:
    violations: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)  # what has happened in it, and how often


def play(seed: int, parts: Parts | None = None) -> Result:
    return World(seed, parts or Parts()).play()


class World:
    def __init__(self, seed: int, parts: Parts) -> None:
        self._random = random.Random(f"memory {seed}")
        self._parts, self._result = parts, Result()
        self._now, self._numbers = BEGINNING, itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._pubsub = Subscription(RETENTION, FLEET.subscription.max_delivery_attempts, self._bury)
        self._dead: list[Dead] = []
        self._habits = HABITS[seed % len(HABITS)]
        self._parks = [self._chance(self._habits.parks) for _ in range(WRITES)]
        self._broken_until = [0.0] * WRITES
        self._left_until = [self._days(30, 50) if self._chance(self._habits.left_alone) else 0.0 for _ in range(WRITES)]
        self._shard = Shard(parts.store, lambda number: self._now < self._broken_until[number])
        self._skews = self._random.uniform(-SKEW, SKEW), self._random.uniform(-SKEW, SKEW)
        first, second = self._random.uniform(1, 14), self._random.uniform(15, 40)
        self._outages = [
            (BEGINNING + day * DAY, BEGINNING + (day + self._random.uniform(0, 5)) * DAY) for day in (first, second)
        ]
        self._applied: Counter[int] = Counter()
        self._purged_at = BEGINNING

    def play(self) -> Result:
        for number in range(WRITES):
            self._at(self._days(0, WRITTEN_DAYS), lambda number=number: self._write(number))
        for _ in range(LOOKS):
            self._at(self._days(0, PEOPLE_DAYS), self._look_at_letters)
            self._at(self._days(0, PEOPLE_DAYS / 2), self._release)
        while self._events and not self._result.violations:
            self._now, _, event = heapq.heappop(self._events)
            if self._now > BEGINNING + END_DAYS * DAY:
                break
            CLOCK.now = self._now + self._skews[0]
            if self._now - self._purged_at > PURGE_SECONDS and self._chance(0.8):
                self._purged_at = self._now
                self._shard.purge(self._parts.retention())
            event()
        if not self._result.violations:
            self._check_end()
        return self._result

    # -- chance and time ---------------------------------------------------------------------------------------------

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _days(self, first: float, last: float) -> float:
        return BEGINNING + self._random.uniform(first, last) * DAY

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self._now), next(self._numbers), event))

    def _after(self, least: float, most: float, event: Callable[[], None]) -> None:
        self._at(self._now + self._random.uniform(least, most), event)

    def _tell(self, what: str, write: int, more: str = "") -> None:
        self._result.met[what] += 1
        day = (self._now - BEGINNING) / DAY
        self._result.history.append(f"{day:8.3f}  w{write} {what} {more}".rstrip())

    def _violate(self, what: str) -> None:
        self._result.violations.append(what)

    # -- producers and Pub/Sub -----------------------------------------------------------------------------------------

    def _write(self, number: int) -> None:
        key = KEYS[number]
        attributes = {
            "slot": digits_of(0, CONFIG.slot_bits),
            "partition_key": key,
            "message_type": "parks" if self._parks[number] else "entry",
            "idempotency_key": f"w{number}",
        }
        if self._chance(self._habits.broken):
            self._broken_until[number] = (
                self._now + self._random.uniform(0, self._random.choice(self._habits.broken_days)) * DAY
            )
        made = self._now - self._random.uniform(0, 5) * DAY  # by a clock of the producer's own
        data = json.dumps({"id": key, "number": number, "made": made}).encode()
        copy = self._publish(number, attributes, data, "published")
        if self._chance(self._habits.retried):
            self._retry_after(copy)
        self._may_seek(copy)

    def _retry_after(self, copy: Copy) -> None:
        """By a producer that got no answer: soon, or late. Of a retry it makes another only where a consumer has met it."""
        messages = sum(other.write == copy.write for other in self._pubsub.copies)
        if messages > MOST_RETRIES:
            return
        late = self._chance(self._habits.late)
        least, most = (RETRIED_WITHIN / 2, RETRIED_WITHIN) if late else (0.0, HOUR)
        self._after(least, most, lambda: self._retry(copy) if messages == 1 or copy.met else None)

    def _retry(self, copy: Copy) -> None:
        again = self._publish(copy.write, dict(copy.message.attributes), copy.message.data, "published again")
        if self._chance(self._habits.retry_buried):
            again.failures, again.crashes = FLEET.subscription.max_delivery_attempts, 1.0
        if self._chance(self._habits.retried):
            self._retry_after(again)
        self._may_seek(again)

    def _may_seek(self, copy: Copy) -> None:
        if self._chance(self._habits.sought):
            limit = copy.published + RETENTION
            self._at(limit - self._random.uniform(0, HOUR), lambda: self._seek(copy.published - HOUR))

    def _publish(self, write: int, attributes: Mapping[str, str], data: bytes, how: str) -> Copy:
        copy = self._pubsub.publish(write, dict(attributes), data, self._now)
        if self._chance(0.3):
            copy.failures, copy.crashes = self._random.choice((1, 3, 5)), self._random.choice((0.0, 0.5, 1.0))
        self._tell(how, write, f"as {copy.id}")
        self._after(0, 10 * MINUTE, lambda: self._deliver(copy))
        return copy

    def _seek(self, to: float) -> None:
        for copy in self._pubsub.seek(to, self._now):
            self._tell("comes again", copy.write, f"as {copy.id}, by a seek")
            self._after(0, 10 * MINUTE, lambda copy=copy: self._deliver(copy))

    def _deliver(self, copy: Copy) -> None:
        if not self._pubsub.has(copy, self._now):
            return
        for began, ended in self._outages:
            if began <= self._now < ended:
                self._at(ended + self._random.uniform(0, 10 * MINUTE), lambda: self._deliver(copy))
                return
        fails = copy.failures > 0
        if fails and self._chance(copy.crashes):
            self._tell("crashes its consumer", copy.write, copy.id)
        else:
            committed = self._shard.handle(copy, lambda delivery: self._dead_letter(copy, delivery))
            copy.met |= committed
            self._tell("handled" if committed else "crashes behind its letter", copy.write, copy.id)
            self._check_effects()
            if committed and not fails:
                copy.acked = True
                self._check_ack(copy)
                return
            if committed:
                self._tell("loses its ack", copy.write, copy.id)
        self._pubsub.failed(copy)
        self._after(10, 30 * MINUTE, lambda: self._deliver(copy))

    def _bury(self, copy: Copy) -> None:
        self._tell("dead-lettered by Pub/Sub", copy.write, copy.id)
        self._dead.append(Dead(copy.write, buried(copy, len(self._dead), self._now), self._now, by_consumer=False))
        self._at(copy.published + self._random.uniform(6.9, 8.0) * DAY, self._look_at_letters)

    def _dead_letter(self, copy: Copy, delivery: Delivery) -> bool:
        message = DeadLetterTopic(None, CONFIG)._message(delivery)  # its text is the real one
        now_us = int(self._now * 1_000_000)
        text = Message(f"d{len(self._dead)}", now_us, message.ordering_key, dict(message.attributes), message.data)
        self._dead.append(Dead(copy.write, text, self._now, by_consumer=True))
        self._tell("dead-lettered by a consumer", copy.write, copy.id)
        return not self._chance(0.2)

    # -- people ------------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        self._shard.release(lambda: self._chance(0.5))
        self._check_effects()

    def _alive(self) -> list[Dead]:
        """Letters that are there, without those whose copy waits: a second one, days later, would count as a write of its own."""
        return [
            dead
            for dead in self._dead
            if not dead.taken_off
            and self._now > self._left_until[dead.write]
            and self._now < dead.dead_lettered_at + LETTER_DAYS * DAY
            and (dead.copy is None or dead.copy.met or self._now - (dead.replayed_at or 0.0) < RETRIED_WITHIN)
        ]

    def _look_at_letters(self) -> None:
        alive = self._alive()
        chosen = self._random.sample(alive, min(len(alive), self._random.randint(1, MOST_LETTERS)))
        if not chosen:
            return
        by_id = {dead.message.id: dead for dead in chosen}
        subscription = topology.dead_letter_subscription(FLEET)
        letters_read = in_order(
            [Found(letters.read(FLEET, subscription, dead.message, stray=False)) for dead in chosen]
        )
        desk_time = datetime.fromtimestamp(self._now + self._skews[1], UTC)
        desk = _Desk(self, by_id, killed=self._chance(0.3))
        report = Report()
        inboxes = self._parts.inboxes(FLEET, {}, Allowed(), lambda: desk_time, lambda _: None)
        inboxes._engines = {"s0": database()}  # to make one for each look would take longer than the look
        try:
            replay(
                FLEET,
                letters_read,
                lambda item: by_id[item.letter.id].message,
                inboxes,
                desk,
                report,
                take_off=desk.take_off,
            )
        except _KilledError:
            return
        self._check_refusals(report, by_id)

    def replayed(self, dead: Dead, message: Message) -> None:
        dead.replayed_at = self._now
        dead.copy = self._publish(dead.write, message.attributes, message.data, "replayed")

    # -- the oracle --------------------------------------------------------------------------------------------------

    def _check_effects(self) -> None:
        for write, times in self._shard.effects().items():
            if times > 1:
                self._violate(f"w{write} took effect {times} times")
        self._applied = self._shard.effects()

    def _check_ack(self, copy: Copy) -> None:
        if self._applied[copy.write] or any(dead.write == copy.write for dead in self._dead):
            return
        if KEYS[copy.write] not in self._shard.parked():
            self._violate(f"w{copy.write} was acked, and is nowhere")

    def taken_off(self, dead: Dead, *, published: bool) -> None:
        dead.taken_off = True
        self._tell("taken off", dead.write, "behind its copy" if published else "as applied")
        if not published and not self._applied[dead.write]:
            self._violate(f"w{dead.write}'s letter was taken off as applied, and it isn't")

    def _check_refusals(self, report: Report, by_id: Mapping[str, Dead]) -> None:
        """That nobody knows is a reason only where nobody knows."""
        for letter, verdict in report.left:
            dead = by_id[letter.id]
            self._tell("refused", dead.write, f"as {verdict.code}")
            self._result.met[f"refused as {verdict.code}"] += 1
            if verdict.code != "forgotten" or self._applied[dead.write]:
                continue
            recorded = any(copy.met for copy in self._pubsub.copies if copy.write == dead.write)
            replayed = any(other.replayed_at for other in self._dead if other.write == dead.write)
            if dead.by_consumer and recorded and not replayed:
                self._violate(f"w{dead.write}'s letter was refused as forgotten, and it is known to be dead")
            young = self._now - letter.written_us / 1_000_000 < RETENTION - 2 * HOUR
            if young:
                self._violate(f"w{dead.write}'s letter was refused as forgotten while its message may still come")

    def _check_end(self) -> None:
        self._check_effects()
        parked = self._shard.parked()
        for write in range(WRITES):
            left = [dead for dead in self._dead if dead.write == write and not dead.taken_off]
            if not (self._applied[write] or left or KEYS[write] in parked):
                self._violate(f"w{write} is lost: it has no effect, and no letter that somebody left")


class _Desk:
    """Pub/Sub as a desk uses it. `killed`: the desk dies when it has published, and takes nothing off."""

    def __init__(self, world: World, by_id: Mapping[str, Dead], *, killed: bool) -> None:
        self._world, self._by_id, self._killed = world, by_id, killed
        self._published: set[int] = set()

    def publish(self, topics: Mapping[str, str], copies: Sequence[Message]) -> dict[int, str]:
        for copy in copies:
            write = json.loads(copy.data)["number"]
            for dead in self._by_id.values():
                if dead.write == write:
                    self._world.replayed(dead, copy)
            self._published.add(write)
        return {}

    def take_off(self, ids: Iterable[tuple[str, str]]) -> int:
        if self._killed:
            raise _KilledError
        for _, name in ids:
            dead = self._by_id[name]
            self._world.taken_off(dead, published=dead.write in self._published)
        return 0

"""What happens in one schedule: messages, faults and settings, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sim.broker import Habits
from tests.sim.message import Message, Poison, Twin, key_of_slot, message
from tests.sim.network import Weather

FROZEN_SECONDS = 14.0  # longer than a lease and a lock live
SERVICES = ("pubsub", "redis", "database", "deadletters")


@dataclass(frozen=True, slots=True)
class Publication:
    at: float
    message: Message


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` is a method of the world; `seconds` how long it lasts; `replica` whom it hits, where it hits one."""

    at: float
    what: str
    seconds: float = 0.0
    replica: int | None = None


@dataclass(frozen=True, slots=True)
class Trap:
    """The same, but just before a replica's step of that number: between two awaits, wherever that is."""

    replica: int
    step: int
    what: str
    seconds: float = 0.0
    life: int = 0  # which of the replica's processes, the first being 0

    def __str__(self) -> str:
        return f"{self.replica}:{self.step}:{self.what}:{self.seconds:g}:{self.life}"

    @classmethod
    def read(cls, text: str) -> Trap:
        """The trap that `str` wrote."""
        replica, step, what, seconds, life = text.split(":")
        return cls(int(replica), int(step), what, float(seconds), int(life))


@dataclass(slots=True)
class Scenario:
    seed: int
    publications: list[Publication]
    replicas: int = 2
    subscriptions: int = 1
    settings: dict[str, object] = field(default_factory=dict)  # of `shardctl.fleet.settings.consuming.Batching`
    faults: list[Fault] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)
    weather: dict[str, Weather] = field(default_factory=lambda: {service: Weather() for service in SERVICES})
    habits: Habits = field(default_factory=lambda: Habits(forget_ack=0.0))
    fail_commit: float = 0.0
    break_takes: float = 0.0
    drawn: bool = False  # from the seed alone, and not the small scenario
    arriving: frozenset[int] = frozenset()
    in_flight_dies_with_sender: bool = True
    locked: tuple[str, ...] = ()  # keys whose row somebody holds until it is calm
    slow_start: bool = False
    real_store: bool = False  # on SQLite, instead of the model of it
    calm_at: float = 0.0  # from here on no fault comes, and everything must come to its end


def drawn(seed: int) -> Scenario:
    """A schedule with any mixture of faults. Which kinds a schedule knows is drawn too, so that some are nearly calm."""
    draw = random.Random(f"{seed} scenario")
    slots = draw.sample(range(8), draw.randint(1, 4))
    calm_at = draw.uniform(3.0, 20.0)
    replicas = draw.choice((1, 2, 2, 3))
    scenario = Scenario(
        seed,
        _publications(draw, random.Random(f"{seed} keys"), slots, calm_at),
        replicas,
        subscriptions=draw.choice((1, 1, 2)),
        settings=_settings(draw),
        habits=_habits(draw),
        calm_at=calm_at,
        drawn=True,
        in_flight_dies_with_sender=draw.random() < 0.5,
        slow_start=draw.random() < 0.5,
    )
    for service in SERVICES:
        if draw.random() < 0.4:
            worst = draw.choice((0.02, 0.1, 0.3))
            scenario.weather[service] = Weather(*(draw.random() * worst for _ in range(3)))
    if draw.random() < 0.3:
        scenario.fail_commit = draw.random() * 0.4
    if draw.random() < 0.3:
        scenario.break_takes = draw.random() * 0.3
    if draw.random() < 0.2:
        scenario.arriving = frozenset(draw.sample(slots, 1))
    scenario.faults = _faults(draw, replicas, calm_at)
    if draw.random() < 0.5:
        scenario.traps = [_trap(draw, replicas) for _ in range(draw.randint(1, 3))]
    return scenario


def _publications(draw: random.Random, draw_key: random.Random, slots: list[int], calm_at: float) -> list[Publication]:
    keys = [key_of_slot(slot, which) for slot in slots for which in range(draw.choice((1, 1, 2)))]
    poison_rate = draw.choice((0.0, 0.0, 0.1, 0.3))
    repeat_rate = draw.choice((0.0, 0.0, 0.2))
    reuse_rate = draw_key.choice((0.0, 0.0, 0.2))
    count = draw.choice((3, 6, 12, 12, 25))
    times = sorted(draw.choice((0.0, draw.random(), draw.random() * calm_at)) for _ in range(count))
    publications: list[Publication] = []
    sound: list[Message] = []
    twinned: set[str] = set()
    for number, at in enumerate(times):
        if sound and draw_key.random() < reuse_rate:
            earlier = draw_key.choice(sound)
            twin = _twin(draw_key, earlier) if earlier.id not in twinned else None
            if earlier.given or twin:
                twinned |= {earlier.id} if twin else set()
                poison = None if twin else Poison.KEY_REUSED
                publications.append(
                    Publication(at, message(number, earlier.key, poison=poison, earlier=earlier, twin=twin))
                )
                continue
        if (
            sound
            and draw.random() < repeat_rate
            and (keyed := [publication for publication in sound if publication.given])
        ):
            earlier = draw.choice(keyed)
            publications.append(Publication(at, message(number, earlier.key, repeats=earlier)))
            continue
        poison = draw.choice(_BY_THEMSELVES) if draw.random() < poison_rate else None
        new = message(number, draw.choice(keys), poison=poison)
        publications.append(Publication(at, new))
        if not poison:
            sound.append(new)
    return publications


_BY_THEMSELVES = [poison for poison in Poison if poison not in (Poison.KEY_REUSED, Poison.DEADLY)]


def _twin(draw: random.Random, earlier: Message) -> Twin | None:
    """How another write comes by the key of an earlier one; None: by an error of its producer's."""
    return draw.choice((None, Twin.CALLER, Twin.TYPE)) if earlier.given else Twin.MESSAGE_ID


def _settings(draw: random.Random) -> dict[str, object]:
    return {
        "batch_max_rows": draw.choice((1, 2, 3, 8, 100)),
        "batch_max_age_ms": draw.choice((0, 5, 20, 100)),
        "concurrency": draw.choice((1, 2, 2, 3)),
        "max_outstanding_messages": draw.choice((1, 3, 10, 1000)),
        "lease": "10s",
        "lock_ttl": draw.choice(("1s", "1s", "3s", "12s")),
        "redis_timeout_ms": draw.choice((50, 500)),
        "statement_timeout": draw.choice(("1s", "5s", "30s")),
        "drain_timeout": draw.choice(("1s", "5s", "20s")),
    }


def _habits(draw: random.Random) -> Habits:
    habits = Habits(count_late_ack=draw.random(), forget_ack=draw.random())
    if draw.random() < 0.4:
        habits.drop_ack = draw.random() * 0.3
    if draw.random() < 0.4:
        habits.end_lease_early = draw.random() * 0.3
    if draw.random() < 0.4:
        habits.copy = draw.random() * 0.4
    return habits


def _faults(draw: random.Random, replicas: int, calm_at: float) -> list[Fault]:
    faults = []
    for _ in range(draw.choice((0, 1, 2, 4, 6))):
        at, replica = draw.choice((draw.random(), draw.random() * calm_at)), draw.randrange(replicas)
        kind = draw.choice(_KINDS)
        if kind in {"kill", "stop", "freeze"}:
            faults.append(Fault(at, kind, draw.choice((0.5, 4.0, 14.0, 35.0)), replica))
        else:
            faults.append(Fault(at, kind, draw.choice((0.2, 2.0, 8.0))))
    return sorted(faults, key=lambda fault: fault.at)


_KINDS = (
    "kill", "kill", "stop", "stop", "freeze", "freeze", "cut_streams", "flush_redis", "redis_down", "database_down",
    "fail_over", "dead_letters_down", "pubsub_down", "lock_a_row",
)  # fmt: skip


def _trap(draw: random.Random, replicas: int) -> Trap:
    what = draw.choice(("kill", "kill", "freeze", "stop"))
    return Trap(draw.randrange(replicas), draw.randint(1, draw.choice((60, 300))), what, draw.choice((0.5, 14.0)))


def small(seed: int, traps: tuple[Trap, ...] = (), *, in_flight_dies_with_sender: bool = True) -> Scenario:
    """Eight messages of two slots, one of them poison, and two replicas: small enough to crash at every await.

    Otherwise nothing goes wrong. The seed draws who gets what, and when.
    """
    keys = [key_of_slot(0), key_of_slot(5), key_of_slot(0, 1)]
    messages = [
        message(number, keys[number % 3], poison=Poison.REFUSED if number == 3 else None) for number in range(8)
    ]
    return Scenario(
        seed,
        [Publication(0.02 * (message.number // 3), message) for message in messages],
        settings={
            "batch_max_rows": 3, "batch_max_age_ms": 5, "concurrency": 2, "max_outstanding_messages": 100,
            "lease": "10s", "lock_ttl": "1s", "redis_timeout_ms": 50, "statement_timeout": "5s", "drain_timeout": "5s",
        },
        traps=list(traps),
        in_flight_dies_with_sender=in_flight_dies_with_sender,
        calm_at=SMALL_SECONDS,
    )  # fmt: skip


SMALL_SECONDS = 1.0  # all is done long before, where nothing is cut short


def every_await(seed: int, steps: list[int]) -> Iterator[Scenario]:
    """The small scenario, cut short between any two awaits of each replica in each way. `steps` is what it takes uncut."""
    for replica, count in enumerate(steps):
        for step in range(1, count + 1):
            yield small(seed, (Trap(replica, step, "kill", 0.5),))
            yield small(seed, (Trap(replica, step, "kill", 0.5),), in_flight_dies_with_sender=False)
            yield small(seed, (Trap(replica, step, "stop"),))
            yield small(seed, (Trap(replica, step, "freeze", FROZEN_SECONDS),))


def two_awaits(seed: int, steps: list[int], count: int) -> Iterator[Scenario]:
    """The small scenario, cut short twice: two replicas, one and its successor, one and its drain. A sample of the pairs."""
    draw = random.Random(f"{seed} pairs")
    for _ in range(count):
        first = draw.randrange(len(steps))
        second, life = draw.choice(((1 - first, 0), (first, 1), (first, 0)))
        traps = [
            Trap(replica, draw.randint(1, max(steps)), what, FROZEN_SECONDS if what == "freeze" else 0.5, which)
            for replica, which, what in (
                (first, 0, draw.choice(("kill", "stop"))),
                (second, life, draw.choice(("kill", "kill", "freeze", "stop"))),
            )
        ]
        yield small(seed, tuple(traps), in_flight_dies_with_sender=draw.random() < 0.5)


def waiting(seed: int, locked_slots: int) -> Scenario:
    """Somebody's transaction holds the rows of some of eight slots all the time. The others must not wait for it."""
    keys = [key_of_slot(slot) for slot in range(8)]
    messages = [message(number, keys[number % 8]) for number in range(160)]
    return Scenario(
        seed,
        [
            Publication(0.4 * (message.number // 8), message) for message in messages
        ],  # one of each slot at once: they share batches
        settings={
            "statement_timeout": f"{WAITING_STATEMENT_SECONDS}s",
            "concurrency": 2,
            "lease": "10s",
            "lock_ttl": "1s",
        },
        locked=tuple(random.Random(f"{seed} locked").sample(keys, locked_slots)),
        calm_at=40.0,
    )


WAITING_STATEMENT_SECONDS = 2


def crashing(seed: int) -> Scenario:
    """Some of many messages that are there from the start kill every process that writes them."""
    draw = random.Random(f"{seed} crashing")
    keys = [key_of_slot(slot) for slot in range(8)]
    deadly = set(draw.sample(range(240), 3))
    messages = [
        message(number, draw.choice(keys), poison=Poison.DEADLY if number in deadly else None) for number in range(240)
    ]
    return Scenario(
        seed,
        [Publication(0.0, message) for message in messages],
        settings={"lease": "10s", "lock_ttl": "1s", "drain_timeout": "5s", "batch_max_rows": 8},
        habits=Habits(forget_ack=0.0, max_attempts=5),
        slow_start=True,
        calm_at=60.0,
    )

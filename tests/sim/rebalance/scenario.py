"""What happens in one schedule: who has which slots before and after, what is published, what goes wrong, what people do."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from shardctl.fleet import yamlfile
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet, Previous
from tests.sim.broker import Habits
from tests.sim.network import Weather
from tests.sim.rebalance.executor import Crash, Manners
from tests.sim.rebalance.message import BALANCE, ENTRY, KEYS, NOTE, SLOT_BITS, SLOTS, Order, Poison, Write
from tests.sim.scenario import FROZEN_SECONDS, Fault, Trap, _habits, _settings

SHARDS = ("s0", "s1", "s2")
SERVICES = ("pubsub", "redis", "deadletters", *(f"database {name}" for name in SHARDS))
FORWARD = ("start", "run", "finish")
ANY_NUMBER = 1_000_000  # of rows: a slot with fewer is copied as a whole in its pause


@dataclass(frozen=True, slots=True)
class Publication:
    at: float
    write: Write


@dataclass(slots=True)
class Scenario:
    """`owners` gives each slot's shard, by slot: before, and after each rebalance. `script` is what people type."""

    seed: int
    owners: tuple[tuple[str, ...], ...]
    publications: list[Publication]
    orders: dict[int, Order]
    script: tuple[str, ...] = FORWARD
    after_crash: tuple[str, ...] | None = None  # what people type instead, once the executor has died
    after_crash_in: frozenset[str] = frozenset({"start", "run", "part"})  # the commands that make people think again
    crashes: tuple[Crash, ...] = ()
    second_executor: bool = False
    few_rows: int = 0  # a slot with fewer is copied as a whole in its pause, the others while their writes go on
    run_at: float = 1.0  # seconds from `start` to `run`: pods may not have been replaced by then
    person_seconds: float = 3.0  # between two looks for parked keys, until all is calm
    replicas: int = 2  # a shard
    settings: dict[str, object] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)
    weather: dict[str, Weather] = field(default_factory=lambda: {service: Weather() for service in SERVICES})
    habits: Habits = field(default_factory=lambda: Habits(forget_ack=0.0))
    manners: Manners = field(default_factory=Manners)
    fail_commit: float = 0.0
    break_takes: float = 0.0
    in_flight_dies_with_sender: bool = True
    hostile: bool = False  # somebody publishes barriers of their own
    drawn: bool = False
    calm_at: float = 0.0

    @property
    def writes(self) -> list[Write]:
        writes = {publication.write.number: publication.write for publication in self.publications}
        return [writes[number] for number in sorted(writes)]


@functools.cache
def fleet_of(owners: tuple[str, ...], settings: str) -> Fleet:
    """A settled fleet. `settings` is JSON, and so is YAML."""
    shards = "".join(
        f"  - {{name: {name}, slots: '{SlotSet.of(slot for slot, owner in enumerate(owners) if owner == name)}'}}\n"
        for name in SHARDS
        if name in owners
    )
    columns = "{id: text, number: integer, owner: text}"
    text = f"""\
fleet: sim
project: simulation
image: example.com/consumer:1.0
routing: {{slot_bits: {SLOT_BITS}}}
consumer: {settings}
message_types:
  {ENTRY}: {{table: entries, key: id, routing_key: owner, columns: {columns}}}
  {NOTE}: {{table: notes, key: id, routing_key: owner, columns: {columns}, on_poison: park}}
  {BALANCE}: {{table: balances, key: owner, columns: {columns}}}
shards:
{shards}"""
    return fleet_from(yamlfile.parse(text))


def next_file(fleet: Fleet, owners: tuple[str, ...]) -> Fleet:
    """What `shardctl rebalance plan` writes: the transitional file that leads from a settled fleet to these owners."""
    by_name = {shard.name: shard for shard in fleet.shards}
    shards = []
    for name in SHARDS:
        wanted = SlotSet.of(slot for slot, owner in enumerate(owners) if owner == name)
        there = by_name.get(name)
        if there is None and wanted.ranges:
            shards.append(
                fleet.shards[0].model_copy(update={"name": name, "slots": wanted, "generation": 1, "previous": ()})
            )
        elif there is not None and there.slots != wanted:
            before = (Previous(generation=there.generation, slots=there.slots),)
            change = {"slots": wanted, "generation": there.generation + 1, "previous": before}
            shards.append(there.model_copy(update=change))
        elif there is not None:
            shards.append(there)
    return fleet.model_copy(update={"shards": tuple(shards)})


def led_to(fleet: Fleet, owners: tuple[str, ...]) -> Fleet:
    """A transitional file that leads to these owners from a rebalance that isn't finished."""
    shards = []
    for shard in fleet.shards:
        wanted = SlotSet.of(slot for slot, owner in enumerate(owners) if owner == shard.name)
        present = (Previous(generation=shard.generation, slots=shard.slots),) if shard.slots.ranges else ()
        change = {"slots": wanted, "generation": shard.generation + 1, "previous": (*(shard.previous or ()), *present)}
        shards.append(shard if shard.previous is None else shard.model_copy(update=change))
    return fleet.model_copy(update={"shards": tuple(shards)})


def drawn(seed: int, *, broken_order: bool = False) -> Scenario:
    """A schedule with any mixture of faults. With `broken_order` producers break the rules in some slots, or in all."""
    draw, draw_copy = random.Random(f"{seed} rebalance"), random.Random(f"{seed} copies")
    calm_at = draw.uniform(6.0, 20.0)
    orders = dict.fromkeys(SLOTS, Order.KEPT)
    if broken_order:
        orders.update(
            {slot: draw.choice((Order.NONE, Order.REGIONS)) for slot in draw.sample(SLOTS, draw.randint(1, 4))}
        )
    replicas = draw.choice((1, 2, 2))
    scenario = Scenario(
        seed,
        _owners(draw),
        _numbered(
            [
                *_publications(draw, random.Random(f"{seed} keys"), orders, calm_at),
                *_balances(random.Random(f"{seed} balances"), orders, calm_at),
            ]
        ),
        orders,
        script=draw.choice(_SCRIPTS),
        after_crash=draw.choice((None, None, *_OTHERWISE)),
        second_executor=draw.random() < 0.2,
        few_rows=draw_copy.choice((0, 0, 8, ANY_NUMBER)),
        run_at=draw.choice((0.0, 1.0, 4.0)),
        person_seconds=draw.choice((3.0, 8.0, 60.0)),
        replicas=replicas,
        settings=_settings(draw),
        habits=_habits(draw),
        calm_at=calm_at,
        drawn=True,
        in_flight_dies_with_sender=draw.random() < 0.5,
    )
    if draw.random() < 0.6:
        numbers = sorted(draw.sample(range(1, 45), draw.choice((1, 1, 2, 4))))
        scenario.crashes = tuple(Crash(number, draw.choice(("before", "after"))) for number in numbers)
    for service in SERVICES:
        if draw.random() < 0.3:
            worst = draw.choice((0.02, 0.1, 0.3))
            scenario.weather[service] = Weather(*(draw.random() * worst for _ in range(3)))
    if draw.random() < 0.3:
        scenario.fail_commit = draw.random() * 0.3
    if draw.random() < 0.2:
        scenario.break_takes = draw.random() * 0.3
    scenario.manners = _manners(draw)
    if draw_copy.random() < 0.3:
        scenario.manners.refuse_round = draw_copy.random() * 0.5
    scenario.faults = _faults(draw, replicas, calm_at)
    if draw.random() < 0.4:
        scenario.traps = [_trap(draw, replicas) for _ in range(draw.randint(1, 3))]
    scenario.hostile = draw.random() < 0.3
    return scenario


def copied_ahead(make: Callable[[int], Scenario] = drawn) -> Callable[[int], Scenario]:
    """The same schedules, with every slot copied while its writes go on."""
    return lambda seed: dataclasses.replace(make(seed), few_rows=0)


def copied_in_the_pause(make: Callable[[int], Scenario] = drawn) -> Callable[[int], Scenario]:
    """The same schedules, with every slot copied as a whole once its lane has left."""
    return lambda seed: dataclasses.replace(make(seed), few_rows=ANY_NUMBER)


def there_and_back(make: Callable[[int], Scenario] = drawn) -> Callable[[int], Scenario]:
    """The same schedules, with slots that go there, back, and there again before anything is finished."""

    def made(seed: int) -> Scenario:
        script = THERE_AND_BACK[seed % len(THERE_AND_BACK)]
        return dataclasses.replace(copied_ahead(make)(seed), script=script, after_crash=None)

    return made


def slot_by_slot(make: Callable[[int], Scenario] = drawn) -> Callable[[int], Scenario]:
    """The same schedules, with some slots that go back or forward again while the others stay where they are."""

    def made(seed: int) -> Scenario:
        script, scenario = SLOT_BY_SLOT[seed % len(SLOT_BY_SLOT)], copied_ahead(make)(seed)
        owners = scenario.owners if scenario.drawn else (scenario.owners[0], ("s1", "s1", "s0", "s1"))
        return dataclasses.replace(scenario, owners=owners, script=script, after_crash=None)

    return made


def finish_cut_short(seed: int) -> Scenario:
    """`finish` is killed half way, later with each of sixteen seeds, and people try to go back."""
    seed += 500  # soon after is one in which a message is held while `finish` forgets its lane
    way_back = ("abort", "back", *FORWARD)
    crashes = (Crash(25 + seed % 16, "after"),)
    return dataclasses.replace(
        copied_ahead(small)(seed), crashes=crashes, after_crash=way_back, after_crash_in=frozenset({"finish"})
    )


# `back` plans the way back from a rebalance that isn't finished and `forward` the way there once more, for all slots or some;
# `again` and `home` do so by the owners that the scenario has. `next` plans one more from a settled file.
THERE_AND_BACK = (
    ("start", "run", "abort", "back", "start", "run", "abort", "again", *FORWARD),
    ("start", "run", "abort", "back", "start", "part", "abort", "start", "run", "abort", "again", *FORWARD),
    ("start", "run", "abort", "back", "start", "part", "abort", "again", "start", "run", "abort", "home", *FORWARD),
    ("start", "part", "abort", "back", "start", "part", "abort", "again", "start", "part", "abort", "home", *FORWARD),
)
SLOT_BY_SLOT = (
    ("start", "run", "abort", "some back", "start", "run", "abort", "back", *FORWARD),
    ("start", "run", "abort", "some back", "start", "run", "abort", "forward", *FORWARD),
    (
        "start",
        "run",
        "abort",
        "back",
        "start",
        "run",
        "abort",
        "some forward",
        "start",
        "part",
        "abort",
        "some back",
        *FORWARD,
    ),
    (
        "start",
        "part",
        "abort",
        "some back",
        "start",
        "part",
        "abort",
        "some forward",
        "start",
        "run",
        "abort",
        "back",
        *FORWARD,
    ),
)
_SCRIPTS = (
    FORWARD, FORWARD, FORWARD,
    ("start", "run", "finish", "next", "start", "run", "finish"),
    ("start", "run", "abort", "back", "start", "run", "finish"),
    ("start", "part", "abort", "start", "run", "finish"),
    ("start", "part", "abort", "back", "start", "run", "finish"),
    ("start", "part", "abort", "back", "start", "part", "abort", "back", "start", "run", "finish"),
)  # fmt: skip
_OTHERWISE = (
    ("abort", "start", "run", "finish"),
    ("abort", "back", "start", "run", "finish"),
)


def _owners(draw: random.Random) -> tuple[tuple[str, ...], ...]:
    first = draw.choice(
        (("s0", "s0", "s1", "s1"), ("s0", "s1", "s1", "s1"), ("s0", "s0", "s0", "s0"), ("s0", "s1", "s0", "s1"))
    )
    owners = [first]
    while len(owners) < 3:
        names = draw.choice((("s0", "s1"), ("s0", "s1"), SHARDS, ("s0",), ("s1", "s2")))
        after = tuple(draw.choice(names) if draw.random() < 0.6 else owner for owner in owners[-1])
        if after != owners[-1]:
            owners.append(after)
    return tuple(owners)


def _publications(
    draw: random.Random, draw_key: random.Random, orders: Mapping[int, Order], calm_at: float
) -> list[Publication]:
    keys = [(key, draw.choice((ENTRY, ENTRY, NOTE))) for slot in SLOTS for key in KEYS[slot][: draw.choice((1, 1, 2))]]
    poison_rate = draw.choice((0.0, 0.0, 0.05, 0.2))
    repeat_rate = draw.choice((0.0, 0.1, 0.3))
    times = sorted(draw.random() * draw.choice((4.0, 8.0, calm_at)) for _ in range(draw.choice((8, 20, 20, 40))))
    reuse_rate = draw_key.choice((0.0, 0.1, 0.3))
    publications: list[Publication] = []
    keyed: list[Write] = []
    number = 0
    for at in times:
        if keyed and draw_key.random() < reuse_rate:
            publications.append(Publication(at, _reuse(draw_key, number, draw_key.choice(keyed), orders)))
            number += 1
            continue
        if keyed and draw.random() < repeat_rate:
            publications.append(Publication(at, draw.choice(keyed[-6:])))
            continue
        poison = draw.choice((Poison.REFUSED, Poison.UNREADABLE)) if draw.random() < poison_rate else None
        key, kind = draw.choice(keys)
        write = Write(number, key, _slot_of(key), kind, poison, keyed=draw.random() < 0.7)
        number += 1
        publications.append(Publication(at, write))
        if write.keyed:
            keyed.append(write)
    return publications


def _reuse(draw: random.Random, number: int, earlier: Write, orders: Mapping[int, Order]) -> Write:
    """Another caller's write under the key of an earlier one; or an error, where it is sure to come behind that one."""
    if draw.random() < 0.5 and earlier.kind == ENTRY and orders[earlier.slot] is Order.KEPT:
        return Write(number, earlier.key, earlier.slot, earlier.kind, Poison.KEY_REUSED, key_of=earlier.number)
    return Write(number, earlier.key, earlier.slot, earlier.kind, key_of=earlier.number, caller=f"c{number}")


def _balances(draw: random.Random, orders: Mapping[int, Order], calm_at: float) -> list[Publication]:
    """Writes that change and delete the rows of a few keys, in slots where it is known which of them came last."""
    keys = [KEYS[slot][-1] for slot in SLOTS if draw.random() < 0.6 and orders[slot] is Order.KEPT]
    times = sorted(draw.random() * draw.choice((4.0, 8.0, calm_at)) for _ in range(draw.choice((0, 6, 12, 24))))
    balances = []
    for number, at in enumerate(times if keys else []):
        key, operation = draw.choice(keys), draw.choice(("upsert", "upsert", "delete"))
        write = Write(number, key, _slot_of(key), BALANCE, keyed=draw.random() < 0.7, operation=operation)
        balances.append(Publication(at, write))
    return balances


def _numbered(publications: list[Publication]) -> list[Publication]:
    """In order of publishing, and numbered so."""
    publications = sorted(publications, key=lambda publication: publication.at)
    writes = list(dict.fromkeys(publication.write for publication in publications))
    numbers = {(write.kind == BALANCE, write.number): number for number, write in enumerate(writes)}
    new = {
        write: dataclasses.replace(
            write, number=number, key_of=None if write.key_of is None else numbers[False, write.key_of]
        )
        for number, write in enumerate(writes)
    }
    return [Publication(publication.at, new[publication.write]) for publication in publications]


def _slot_of(key: str) -> int:
    return next(slot for slot in SLOTS if key in KEYS[slot])


def _manners(draw: random.Random) -> Manners:
    manners = Manners(pause=draw.choice((0.1, 0.4)))
    if draw.random() < 0.3:
        manners.long_pause = draw.random() * 0.1
    if draw.random() < 0.3:
        manners.lose_session = manners.lose_commit = manners.lose_answer = draw.random() * 0.1
    if draw.random() < 0.3:
        manners.refuse_publish = manners.lose_publish_answer = draw.random() * 0.3
    return manners


_KINDS = (
    "kill", "kill", "stop", "freeze", "freeze", "cut_streams", "flush_redis", "redis_down", "database_down", "pubsub_down",
    "dead_letters_down", "kill_executor", "kill_executor", "freeze_executor",
)  # fmt: skip


def _faults(draw: random.Random, replicas: int, calm_at: float) -> list[Fault]:
    faults = []
    for _ in range(draw.choice((0, 1, 2, 4, 6))):
        at, replica = draw.random() * draw.choice((5.0, calm_at)), draw.randrange(replicas * len(SHARDS))
        kind = draw.choice(_KINDS)
        if kind in {"kill", "stop", "freeze"}:
            faults.append(Fault(at, kind, draw.choice((0.5, 4.0, 14.0, 35.0)), replica))
        else:
            faults.append(Fault(at, kind, draw.choice((0.2, 2.0, 8.0))))
    return sorted(faults, key=lambda fault: fault.at)


def _trap(draw: random.Random, replicas: int) -> Trap:
    what = draw.choice(("kill", "kill", "freeze", "stop"))
    replica = draw.randrange(replicas * len(SHARDS))
    return Trap(
        replica, draw.randint(1, draw.choice((100, 600))), what, draw.choice((0.5, 14.0)), draw.choice((0, 0, 1))
    )


# -- small enough to cut short everywhere ------------------------------------------------------------------------------


def small(
    seed: int,
    *,
    crashes: tuple[Crash, ...] = (),
    after_crash: tuple[str, ...] | None = None,
    traps: tuple[Trap, ...] = (),
    replicas: int = 1,
    broken_order: bool = False,
) -> Scenario:
    """Slot 1 moves from s0 to s1, the others stay under new generations, with writes of each slot all the while.

    One key is parked and one write dead-lettered in the slot that moves. Otherwise nothing goes wrong.
    Of four seeds in a row, the first two copy the slot while its writes go on, the others in its pause.
    """
    keys = [KEYS[0][0], KEYS[1][0], KEYS[1][1], KEYS[2][0]]
    publications = []
    for number in range(20):
        key = keys[number % 4]
        poison = Poison.REFUSED if number in (5, 6) else None
        write = Write(number, key, _slot_of(key), NOTE if key == keys[2] else ENTRY, poison)
        publications.append(Publication(0.2 * number, write))
        if number % 3 == 1:
            publications.append(Publication(0.2 * number + 0.7, write))
    for number in range(0 if broken_order else 8):
        operation = "delete" if number % 3 == 2 else "upsert"
        write = Write(number, KEYS[1][-1], 1, BALANCE, operation=operation)
        publications.append(Publication(0.5 * number + 0.1, write))
    order = Order.NONE if broken_order else Order.KEPT
    return Scenario(
        seed,
        (("s0", "s0", "s1", "s1"), ("s0", "s1", "s1", "s1")),
        _numbered(publications),
        dict.fromkeys(SLOTS, order),
        after_crash=after_crash,
        crashes=crashes,
        few_rows=0 if seed // 2 % 2 == 0 else ANY_NUMBER,
        run_at=3.2 if seed % 2 else 1.0,  # after the pods have been replaced, or before
        replicas=replicas,
        settings={
            "batch_max_rows": 3, "batch_max_age_ms": 5, "concurrency": 2, "max_outstanding_messages": 100,
            "lease": "10s", "lock_ttl": "1s", "redis_timeout_ms": 50, "statement_timeout": "5s", "drain_timeout": "5s",
        },
        traps=list(traps),
        manners=Manners(pause=0.2),
        calm_at=6.0,
    )  # fmt: skip


OTHERWISE = (None, *_OTHERWISE)


def every_effect(seed: int, effects: int, stride: int = 1) -> Iterator[Scenario]:
    """The small scenario, its executor killed before and after each effect; then people go on, or abort it and go on or back."""
    for number in range(1, effects + 1, stride):
        for when in ("before", "after"):
            for after_crash in OTHERWISE:
                yield small(seed, crashes=(Crash(number, when),), after_crash=after_crash)


def every_await(seed: int, lives: Mapping[tuple[int, int], int], stride: int = 1) -> Iterator[Scenario]:
    """The small scenario with each replica killed or frozen between any two awaits. `lives`: the steps of each when uncut."""
    for (replica, life), count in lives.items():
        for step in range(1 + seed % stride, count + 1, stride):
            yield small(seed, traps=(Trap(replica, step, "kill", 0.5, life),))
            yield small(seed, traps=(Trap(replica, step, "freeze", FROZEN_SECONDS, life),))

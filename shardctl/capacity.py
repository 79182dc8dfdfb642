"""What a fleet needs for an expected load: replicas, lag after an outage, disk, volume, the effect of a rebalance. Pure.

Keys are written as often as Zipf's law says: the key of rank r gets a share in proportion to 1 / r^skew. Each is hashed as
producers hash it, so a hot key is hot on the slot that it would really have. Keys beyond `COUNTED_KEYS` have few writes each;
they count as spread evenly, since they are many.

A replica's CPU is what each batch costs, whatever is in it, and what each message costs. How many messages share a batch follows
from the rate: the next batch leaves once `batch_max_age_ms` has passed since the last one, less after a single message, or, with
all workers busy, once one of them is done. So twice the replicas make more batches of fewer messages, and take more CPU together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from shardctl.fleet import quantities, topology
from shardctl.fleet.settings.consuming import LONE_SHARE, Batching
from shardctl.fleet.spec import Fleet, Shard
from shardctl.rebalance.planning.plan import NoPlanError, NothingToMoveError, plan
from shardctl.rebalance.planning.request import Request

COUNTED_KEYS = 200_000
ATTRIBUTE_BYTES = 220  # of the publisher's six attributes, names included, and the ordering key
LEAST_REQUEST_BYTES = 1_000  # that Pub/Sub charges for
KEY_BYTES_PER_SECOND = 1_000_000  # of one ordering key, which is a slot
SCALE_DELAY_SECONDS = 180.0  # until the autoscaler has seen a backlog and its pods are ready
MONTH_SECONDS = 30.4375 * 86_400
TIB = 1 << 40


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of a replica's process for each batch and for each message; and how long a batch of few messages takes."""

    batch_cpu_seconds: float
    message_cpu_seconds: float
    batch_seconds: float


# --- measured: what this version takes on PostgreSQL. Change these figures together with what they are figures of. --------------

# batch_cpu_us and message_cpu_us of `python -m bench.pipeline --rate 100 --rate 500 --rate 1000`; committed_p50_ms of
# `python -m bench.latency`. Of the slower of the two machines in docs/measured.md.
MEASURED = Cost(batch_cpu_seconds=0.007, message_cpu_seconds=0.000_05, batch_seconds=0.007)
# disordered_bytes of `python -m bench.inbox`: with indexes, as writes of many producers arrive.
INBOX_BYTES_PER_WRITE = 112

# --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Writes a second of all types together; how many keys they go to, and how unevenly; bytes of a body.

    `mix` holds each type's share. `publish_batch` is how many messages a producer sends in a request.
    """

    writes_per_second: float
    keys: int
    skew: float = 1.0
    body_bytes: int = 500
    mix: Mapping[str, float] | None = None
    key_format: str = "{}"
    publish_batch: int = 1


@dataclass(frozen=True, slots=True)
class Speed:
    """Writes a second that one replica commits, and that it commits of one slot, whose batches go one after the other."""

    replica: float
    slot: float


@dataclass(frozen=True, slots=True)
class ShardNeed:
    """`replicas` are those that keep the CPU under its target; `capped` says that the shard may not have that many.

    With them each replica takes `replica_cores` of CPU, in batches of `batch_rows` messages. `hottest_rate` is that of
    `hottest_slot`. `backlog` is what an outage leaves; `drain_seconds` how long the shard then works on it, None where it never
    ends. The inbox grows to `inbox_rows` within its retention, and stays there.
    """

    shard: str
    writes_per_second: float
    replicas: int
    capped: bool
    replica_cores: float
    batch_rows: float
    hottest_slot: int
    hottest_rate: float
    backlog: int
    drain_seconds: float | None
    inbox_rows: int
    inbox_bytes: int


@dataclass(frozen=True, slots=True)
class Levelled:
    """What `rebalance plan --by-load` would do: slots moved, and the busiest shard before and after, in writes a second."""

    slots_moved: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """`hot_slots` are those that one replica, or Pub/Sub's bound for an ordering key, can't keep up with, by rate."""

    shards: tuple[ShardNeed, ...]
    hot_slots: tuple[tuple[int, float], ...]
    published_tib: float  # a month
    delivered_tib: float
    usd: float
    levelled: Levelled | None

    @property
    def replicas(self) -> int:
        return sum(shard.replicas for shard in self.shards)

    @property
    def inbox_bytes(self) -> int:
        return sum(shard.inbox_bytes for shard in self.shards)

    @property
    def fits(self) -> bool:
        return not self.hot_slots and not any(shard.capped for shard in self.shards)


def simulate(fleet: Fleet, load: Load, speed: Speed, outage_seconds: float, cost: Cost = MEASURED) -> Capacity:
    """The same for the same arguments."""
    rates = slot_rates(fleet, load)
    message_bytes = load.body_bytes + ATTRIBUTE_BYTES
    slot_limit = min(speed.slot, KEY_BYTES_PER_SECOND / message_bytes)
    hot = sorted(((rate, slot) for slot, rate in enumerate(rates) if rate > slot_limit), reverse=True)
    published = (
        load.writes_per_second * max(message_bytes, LEAST_REQUEST_BYTES / load.publish_batch) * MONTH_SECONDS / TIB
    )
    delivered = load.writes_per_second * message_bytes * MONTH_SECONDS / TIB * topology.delivery_factor(fleet)
    return Capacity(
        tuple(_need(fleet, shard, load, rates, speed, outage_seconds, cost) for shard in fleet.shards),
        tuple((slot, rate) for rate, slot in hot),
        published,
        delivered,
        (published + delivered) * topology.USD_PER_DELIVERED_TIB,
        _levelled(fleet, load, rates),
    )


def slot_rates(fleet: Fleet, load: Load) -> list[float]:
    """Writes a second of each slot, all types together."""
    rule, counted = fleet.routing.rule, min(load.keys, COUNTED_KEYS)
    weights = [rank**-load.skew for rank in range(1, counted + 1)]
    tail = _harmonic(load.keys, load.skew) - _harmonic(counted, load.skew) if load.keys > counted else 0.0
    scale = load.writes_per_second / (math.fsum(weights) + tail)
    rates = [0.0] * (1 << rule.bits)
    for number, weight in enumerate(weights):
        rates[rule.slot_of(load.key_format.format(number))] += weight * scale
    for slot, share in enumerate(_even(rule.bits, fleet.routing.modulo, fleet) if tail else ()):
        rates[slot] += tail * scale * share
    return rates


def even_rate(fleet: Fleet, shard: Shard, writes_per_second: float) -> float:
    """The shard's part of the fleet's writes, where types have equal shares and all of many keys are written equally often."""
    parts = _even(fleet.routing.rule.bits, fleet.routing.modulo, fleet)
    share = _share_of_types(fleet, shard, Load(writes_per_second, keys=1))
    return writes_per_second * share * math.fsum(parts[slot] for slot in shard.slots)


def _even(bits: int, modulo: int, fleet: Fleet) -> list[float]:
    """The part of many keys that goes to each slot."""
    if not modulo:
        return [1 / (1 << bits)] * (1 << bits)
    runs = [fleet.routing.rule.run_of(remainder) for remainder in range(modulo)]
    return [1 / modulo / (end - first) for first, end in runs for _ in range(first, end)]


def _harmonic(count: int, skew: float) -> float:
    """The sum of 1 / r^skew over the ranks 1 to count, by Euler and Maclaurin from where the terms are small."""
    exact = min(count, 1_000)
    total: float = math.fsum(rank**-skew for rank in range(1, exact + 1))
    if count == exact:
        return total
    area = math.log(count / exact) if skew == 1 else (count ** (1 - skew) - exact ** (1 - skew)) / (1 - skew)
    return float(total + area + (count**-skew - exact**-skew) / 2)


def _need(
    fleet: Fleet, shard: Shard, load: Load, rates: Sequence[float], speed: Speed, outage_seconds: float, cost: Cost
) -> ShardNeed:
    share = _share_of_types(fleet, shard, load)
    mine = {slot: rates[slot] * share for slot in shard.slots}
    rate = math.fsum(mine.values())
    hottest = max(mine, key=lambda slot: (mine[slot], -slot), default=0)
    scaling, batching = shard.autoscaling, shard.consumer
    most = min(scaling.most, len(shard.slots))
    target = scaling.cpu_percent / 100
    cores = target * float(quantities.read(shard.resources.cpu))
    wanted = 1
    while wanted <= most and (
        cores_of(rate / wanted, batching, cost) > cores or rate / wanted > speed.replica * target
    ):
        wanted += 1
    replicas = max(min(scaling.min, most), min(wanted, most), 1 if rate else 0)
    rows = inbox_rows(fleet, shard, rate)
    return ShardNeed(
        shard.name,
        rate,
        replicas,
        wanted > most,
        cores_of(rate / max(1, replicas), batching, cost),
        batch_rows(rate / max(1, replicas), batching, cost),
        hottest,
        mine.get(hottest, 0.0),
        round(rate * outage_seconds),
        _drain_seconds(rate, rate * outage_seconds, replicas * speed.replica, most * speed.replica),
        rows,
        rows * INBOX_BYTES_PER_WRITE,
    )


def inbox_rows(fleet: Fleet, shard: Shard, writes_per_second: float) -> int:
    """What the shard's inbox grows to within its retention, and stays at; each of them takes `INBOX_BYTES_PER_WRITE`."""
    return round(writes_per_second * topology.inbox_retention(fleet, shard).total_seconds())


def batch_rows(rate: float, batching: Batching, cost: Cost) -> float:
    """How many messages share a batch, on average, of a replica that receives so many a second at random times.

    What comes within the interval behind a batch is the next one; where nothing does, that is a lone message, later. The interval
    behind a lone message is shorter.
    """
    pause, least = batching.batch_max_age_ms / 1_000, cost.batch_seconds / batching.concurrency
    # For each of both intervals: how many messages come within it, and how likely the next batch holds a single one.
    after_lone, after_several = (rate * max(seconds, least) for seconds in (LONE_SHARE * pause, pause))
    lone_again, lone_next = ((1 + arrivals) * math.exp(-arrivals) for arrivals in (after_lone, after_several))
    lone = lone_next / (1 - lone_again + lone_next)  # the share of batches of a single message, in the long run
    rows = [arrivals + math.exp(-arrivals) for arrivals in (after_lone, after_several)]
    return min(lone * rows[0] + (1 - lone) * rows[1], batching.batch_max_rows)


def cores_of(rate: float, batching: Batching, cost: Cost) -> float:
    """The CPU that such a replica uses, in cores."""
    return rate / batch_rows(rate, batching, cost) * cost.batch_cpu_seconds + rate * cost.message_cpu_seconds


def _share_of_types(fleet: Fleet, shard: Shard, load: Load) -> float:
    mix = load.mix or dict.fromkeys(fleet.message_types, 1.0)
    return sum(part for name, part in mix.items() if shard.takes(name)) / sum(mix.values())


def _drain_seconds(rate: float, backlog: float, before: float, after: float) -> float | None:
    """With the present replicas until the autoscaler has added the others."""
    gained = (before - rate) * SCALE_DELAY_SECONDS
    if 0 < backlog <= gained:
        return backlog / (before - rate)
    if backlog <= 0:
        return 0.0
    return SCALE_DELAY_SECONDS + (backlog - gained) / (after - rate) if after > rate else None


def _levelled(fleet: Fleet, load: Load, rates: Sequence[float]) -> Levelled | None:
    if fleet.rebalancing or len(fleet.shards) < 2:
        return None
    try:
        rebalance_plan = plan(fleet, Request(rates=dict(enumerate(rates))))
    except (NoPlanError, NothingToMoveError):
        return None
    sums = [0.0, *accumulate(rates)]

    def busiest(layout: Fleet) -> float:
        return max(
            _share_of_types(layout, shard, load)
            * sum(sums[last + 1] - sums[first] for first, last in shard.slots.ranges)
            for shard in layout.shards
        )

    return Levelled(rebalance_plan.moved, busiest(fleet), busiest(rebalance_plan.after.settled()))

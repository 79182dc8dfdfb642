"""How long a plan takes for 1,000 shards and 65,536 slots, and how few slots it moves beside cutting from scratch.

    python -m bench.planner [--json] [--shards N] [--runs N]
    python -m bench.planner --small [--json]

The fleet's shards have 64 slots, some 128, at round boundaries as filters want them. Each figure is the median of the
runs in a fresh state. The baseline cuts the slots into even ranges, in the order of the file, and so moves what lies
beyond the shifted boundaries; most of its filters wouldn't fit.

With `--small`: fleets of 2 to 12 shards as `shardctl init` makes them, of every type and of one, to which one or two shards
are added and from which one is removed. How many plans move no more than the minimum, and how much more all of them move.
"""

from __future__ import annotations

import random
import statistics
import time

from bench.report import parser_of, show
from shardctl.errors import ShardctlError
from shardctl.fleet import scaffold
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request

SLOT_BITS = 16
FLEET = """
fleet: bench
project: my-project
image: example.com/consumer:1.0
routing: {slot_bits: 16}
message_types:
  order: {table: orders, key: id, columns: {id: text}}
shards: [{name: s0, slots: 0-65535}]
"""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.small:
        show(_small(), options.json, {"mean_s": "< 1"})
        return
    fleet = _fleet(options.shards)
    rates = _rates()
    requests = {
        "plan": Request(add=("new",)),
        "remove": Request(remove=("s7",)),
        "split": Request(split="s3"),
        "weights": Request(weights={"s0": 3}),
        "level": Request(),
        "by_load": Request(rates=rates),
    }
    result = {"shards": options.shards, "slots": 1 << SLOT_BITS}
    for name, request in requests.items():
        seconds, made = _timed(fleet, request, options.runs)
        result[f"{name}_s"] = round(seconds, 3)
        result[f"{name}_moved"] = made.moved if made else None
        result[f"{name}_minimum"] = made.minimum if made else None
    result["recut_moved"] = _recut(fleet, options.shards + 1)
    result["ratio"] = round(result["recut_moved"] / result["plan_moved"], 1)
    show(result, options.json, {"plan_s": "< 1"})


def _small():
    made, seconds, refused = [], [], 0
    for fleet, request in _small_requests():
        took, planned = _timed(fleet, request, 1)
        seconds.append(took)
        made += [planned] if planned else []
        refused += planned is None
    moved, minimum = sum(planned.moved for planned in made), sum(planned.minimum for planned in made)
    return {
        "plans": len(seconds),
        "refused": refused,
        "at_minimum": sum(planned.moved == planned.minimum for planned in made),
        "moved_beyond_minimum_percent": round(100 * (moved / minimum - 1), 1),
        "mean_s": round(statistics.mean(seconds), 3),
        "slowest_s": round(max(seconds), 3),
    }


def _small_requests():
    for count in range(2, 13):
        fleet = fleet_from(parse(scaffold.text(count), "bench"))
        types = tuple(fleet.message_types)[:1]
        typed = tuple(shard.model_copy(update={"types": types}) for shard in fleet.shards)
        for of_types in (fleet, fleet.model_copy(update={"shards": typed})):
            yield of_types, Request(add=("x",))
            yield of_types, Request(add=("x", "y"))
            for gone in {f"s{count - 1}", f"s{count // 2}"} if count > 2 else ():
                yield of_types, Request(remove=(gone,))


def _timed(fleet, request, runs):
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        try:
            made = plan(fleet, request)
        except ShardctlError:
            made = None
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), made


def _fleet(shards):
    """Ranges of 64 slots, and as many of 128 as it takes to use all, strewn among them."""
    unit = 1 << (SLOT_BITS - (shards - 1).bit_length())
    double = (1 << SLOT_BITS) // unit - shards
    pairs = [1] * double + [2] * ((shards - double) // 2)  # how many shards share two units, so that ranges are aligned
    random.Random(1).shuffle(pairs)
    fleet = fleet_from(parse(FLEET, "bench"))
    ranges, first = [], 0
    for count in pairs:
        size = 2 * unit // count
        ranges += [(first + number * size, first + (number + 1) * size - 1) for number in range(count)]
        first += 2 * unit
    made = [
        fleet.shards[0].model_copy(update={"name": f"s{number}", "slots": SlotSet((slot_range,))})
        for number, slot_range in enumerate(ranges)
    ]
    return fleet.model_copy(update={"shards": tuple(made)})


def _rates():
    draw = random.Random(2)
    return {slot: draw.expovariate(1) for slot in range(1 << SLOT_BITS)}


def _recut(fleet, shards):
    """Slots that change shards where all are cut from scratch into even ranges, the last one for the new shard."""
    count = 1 << SLOT_BITS
    owner = {slot: number for number, shard in enumerate(fleet.shards) for slot in shard.slots}
    return sum(owner[slot] != slot * shards // count for slot in range(count))


if __name__ == "__main__":
    main()

"""The `shards.yaml` that `shardctl init` writes. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

from shardctl.fleet.filters import compile_filter
from shardctl.fleet.keyspace import SlotRule, SlotSet

SLOT_BITS = 10
MAX_SHARDS = 1 << 8
# How far a boundary may lie from the even one, in shares of a shard: rounder ones make shorter filters.
TOLERANCES = (0.05, 0.02, 0.1, 0.15, 0.2, 0.25)
FAIR = 1.05  # the largest shard over the mean, below which round boundaries are worth more than even ones


@dataclass(frozen=True, slots=True)
class Names:
    """What a fleet is called and where it lives. Its Secrets are named after it."""

    fleet: str = "orders"
    project: str = "my-project"
    namespace: str = "orders"
    image: str = "europe-docker.pkg.dev/my-project/shardctl/consumer:0.1.0"


def text(shards: int, names: Names = Names()) -> str:
    """A commented fleet of 1 to 256 shards, as even as round slot boundaries allow."""
    return _text(list(pairwise(_boundaries(shards))), names)


def _boundaries(shards: int) -> list[int]:
    """The first slot of each shard, and the end: the evenest whose filters leave no malformed slot out, else fewest."""
    best: tuple[tuple[int, float], list[int]] | None = None
    for halvings in range(5):
        for tolerance in TOLERANCES:
            bounds = [*_cut(0, 1 << SLOT_BITS, shards, halvings, tolerance), 1 << SLOT_BITS]
            lacking = sum(not _filter_is_complete(first, end) for first, end in pairwise(bounds))
            unfairness = max(end - first for first, end in pairwise(bounds)) * shards / (1 << SLOT_BITS)
            rank = lacking, max(unfairness, FAIR)
            if best is None or rank < best[0]:
                best = rank, bounds
    assert best is not None
    return best[1]


def _cut(first: int, end: int, shards: int, halvings: int, tolerance: float) -> list[int]:
    """Where each of `shards` begins; the range is halved `halvings` times first, and each part is cut by itself.

    A shard across the middle of many needs a long filter, since its slots have few digits in common.
    """
    if halvings and shards > 1:
        middle, left = (first + end) // 2, shards // 2
        return [
            *_cut(first, middle, left, halvings - 1, tolerance),
            *_cut(middle, end, shards - left, halvings - 1, tolerance),
        ]
    size = (end - first) / shards
    return [_roundest(first + number * size, tolerance * size) for number in range(shards)]


def _roundest(target: float, within: float) -> int:
    """The slot that the highest power of two divides, of those within some distance of `target`; then the nearest."""
    for grain in (1 << bits for bits in range(SLOT_BITS, -1, -1)):
        slot = round(target / grain) * grain
        if abs(slot - target) <= within:
            return slot
    return round(target)


def _filter_is_complete(first: int, end: int) -> bool:
    return compile_filter(SlotSet(((first, end - 1),)), SLOT_BITS).padded


def text_of_modulo(modulo: int, key: str, table: str, names: Names = Names()) -> str:
    """A fleet whose shard n has the keys for which `key % modulo` is n: databases that exist become shards as they are."""
    rule = SlotRule(max(SLOT_BITS, (4 << (modulo - 1).bit_length()).bit_length() - 1), modulo)
    words = {"bits": rule.bits, "slots": 1 << rule.bits, "modulo": modulo, "key": key, "table": table}
    head = _fleet(names) + _MODULO_ROUTING.format(**words) + _TYPES + _MODULO_TYPE.format(**words) + _settings(names)
    ranges = [rule.run_of(remainder) for remainder in range(modulo)]
    return head + _MODULO_NOTE.format(**words) + _shards(ranges, names)


def text_of_tables(shards: int, types: str, names: Names = Names()) -> str:
    """A fleet of 1 to 256 shards with these lines under `message_types:`, which come from tables that exist."""
    ranges = list(pairwise(_boundaries(shards)))
    head = _fleet(names) + _ROUTING + _TYPES + _TABLES_NOTE + types + _settings(names)
    return head + _NOTE + _shards(ranges, names)


def _text(ranges: list[tuple[int, int]], names: Names) -> str:
    return _fleet(names) + _ROUTING + _TYPES + _TWO_TYPES + _settings(names) + _NOTE + _shards(ranges, names)


def _fleet(names: Names) -> str:
    return _FLEET.format(**asdict(names))


def _settings(names: Names) -> str:
    return _SETTINGS.replace("FLEET-redis", f"{names.fleet}-redis")


def _shards(ranges: list[tuple[int, int]], names: Names) -> str:
    lines = []
    for number, (first, end) in enumerate(ranges):
        slots = f"{first}-{end - 1}" if end - first > 1 else f"{first}"
        lines.append(
            f"  - name: s{number}\n    slots: {slots}\n    database: {{name: {names.fleet}-s{number}-db, key: url}}\n"
        )
    return "shards:\n" + "".join(lines) + _LOCAL


_FLEET = """\
# One fleet: every shard fed by one topic. `shardctl validate` checks this file, `shardctl render` turns it into manifests,
# `shardctl up` runs it on this machine. `shardctl schema` prints its JSON Schema for your editor.
fleet: {fleet}
project: {project}
namespace: {namespace}
image: {image}
topic: data-writes
"""

_ROUTING = """
routing:
  slot_bits: 10        # 1,024 slots; fixed for the fleet's life
  topic_bits: 0        # one topic; 2^n topics cut the cost of delivery; fixed for the fleet's life
"""
_MODULO_ROUTING = """
routing:
  slot_bits: {bits}        # {slots:,} slots; fixed for the fleet's life
  topic_bits: 0        # one topic; 2^n topics cut the cost of delivery; fixed for the fleet's life
  modulo: {modulo}            # keys stay together by their remainder; fixed for the fleet's life
"""

_TYPES = """
# Where writes land. A body is a JSON object; its fields are the columns.
message_types:
"""
_TWO_TYPES = """\
  customer:
    table: customers
    key: customer_id
    columns:
      customer_id: text
      name: text
      email: text
      tier: text
      credit: bigint
      revision: bigint
  order:
    table: orders
    key: order_id
    columns:
      order_id: text
      customer_id: text
      status: text
      amount: decimal
      lines: json
      placed_at: timestamp
      revision: bigint
"""
_MODULO_TYPE = """\
  {table}:
    table: {table}
    key: {key}           # its primary key; where that is another column, say routing_key: {key}
    columns:
      {key}: bigint
      # every other column that writes may set, with its type: text, bigint, decimal, boolean, timestamp, json, …
"""

_TABLES_NOTE = """\
  # From tables that exist; read each comment. `shardctl adopt` gives their rows the slot column and its values.
"""

_SETTINGS = """
subscription:
  ack_deadline: 60s
  retention: 7d
  retry_maximum: 600s
  max_delivery_attempts: 5

redis:
  secret: {name: FLEET-redis, key: url}

autoscaling:
  min: 2
  max: 10
  cpu_percent: 70
  backlog_per_replica: 100
"""

_NOTE = """
# Slots 0-1023. Near even, on round boundaries: those keep each filter, which takes malformed slots too, in 256 bytes.
# `shardctl rebalance` moves slots of a live fleet; editing these lines alone doesn't move data.
"""
_MODULO_NOTE = """
# Shard n has the keys for which {key} % {modulo} is n: its database is the one that those rows lie in now. `shardctl adopt` gives
# the rows their slots; from then on `shardctl rebalance` moves slots, and the number of shards is free.
"""

_LOCAL = """
local:                 # what `shardctl up` starts
  database: postgresql
  replicas: 2
"""

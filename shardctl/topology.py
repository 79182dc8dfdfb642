"""What a fleet is made of on Pub/Sub: topics, subscriptions and their filters. Pure; every name is derived here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from shardctl.filters import shard_filter, strays_filter, too_short
from shardctl.keyspace import SlotSet, digits_of
from shardctl.spec import Fleet, Shard

USD_PER_DELIVERED_TIB = 40


@dataclass(frozen=True, slots=True)
class Topic:
    """One of the fleet's 2^topic_bits topics. It carries the slots whose digits begin with `prefix`."""

    id: str
    prefix: str
    slots: SlotSet


@dataclass(frozen=True, slots=True)
class Subscription:
    """One shard's subscription of one generation on one topic."""

    id: str
    topic: Topic
    filter: str
    generation: int
    slots: SlotSet


@dataclass(frozen=True, slots=True)
class Strays:
    """The subscription on one topic for messages that no shard's filter takes.

    `blind` lists malformed slots that still match nothing, because naming them all would pass 256 bytes.
    """

    id: str
    topic: Topic
    filter: str
    blind: tuple[str, ...]


def topics(fleet: Fleet) -> tuple[Topic, ...]:
    return _topics(fleet.topic, fleet.routing.topic_bits, fleet.routing.slot_bits)


@lru_cache(maxsize=64)
def _topics(name: str, topic_bits: int, slot_bits: int) -> tuple[Topic, ...]:
    if topic_bits == 0:
        return (Topic(name, "", SlotSet.all(slot_bits)),)
    prefixes = [digits_of(number, topic_bits) for number in range(1 << topic_bits)]
    return tuple(
        Topic(f"{name}-{number}", prefix, SlotSet.of_prefix(prefix, slot_bits))
        for number, prefix in enumerate(prefixes)
    )


def topic_of(fleet: Fleet, slot: int) -> Topic:
    """The topic a slot's messages are published to."""
    return topics(fleet)[slot >> (fleet.routing.slot_bits - fleet.routing.topic_bits)]


def shard_id(fleet: Fleet, shard: Shard) -> str:
    """The name that a shard's Kubernetes objects share: `orders-s0`."""
    return f"{fleet.fleet}-{shard.name}"


def subscriptions(fleet: Fleet, shard: Shard) -> tuple[Subscription, ...]:
    """A shard's subscriptions, one on each topic its slots touch: `orders-s0-g1`, or `orders-s0-g1-t5` on topic 5."""
    found = []
    for number, topic in enumerate(topics(fleet)):
        slots = shard.slots & topic.slots
        if not slots.ranges:
            continue
        suffix = f"-t{number}" if fleet.routing.topic_bits else ""
        text = shard_filter(
            slots,
            fleet.routing.slot_bits,
            within=topic.prefix,
            types=shard.types,
            except_types=shard.except_types,
            names=fleet.routing.attributes.in_filters,
        )
        found.append(
            Subscription(f"{shard_id(fleet, shard)}-g{shard.generation}{suffix}", topic, text, shard.generation, slots)
        )
    return tuple(found)


def strays(fleet: Fleet) -> tuple[Strays, ...]:
    """One strays subscription a topic: its filter and the shards' filters leave nothing to the service to drop."""
    from shardctl.filters import MAX_FILTER_BYTES

    types = () if takes_every_type(fleet) else known_types(fleet)
    found = []
    for number, topic in enumerate(topics(fleet)):
        prefixes = [
            prefix for shard in fleet.shards for prefix in (shard.slots & topic.slots).prefixes(fleet.routing.slot_bits)
        ]
        short = too_short(prefixes, topic.prefix)
        named = len(short)
        while True:
            text = strays_filter(
                short[:named], within=topic.prefix, types=types, names=fleet.routing.attributes.in_filters
            )
            if named == 0 or len(text.encode()) <= MAX_FILTER_BYTES:
                break
            named -= 1
        suffix = f"-t{number}" if fleet.routing.topic_bits else ""
        found.append(Strays(f"{fleet.fleet}-strays{suffix}", topic, text, short[named:]))
    return tuple(found)


def dead_letter_topic(fleet: Fleet) -> str:
    return f"{fleet.topic}-dead"


def dead_letter_subscription(fleet: Fleet) -> str:
    return f"{fleet.fleet}-dead"


def known_types(fleet: Fleet) -> tuple[str, ...]:
    """Every message type the file names, sorted."""
    named = {name for shard in fleet.shards for name in (*shard.types, *shard.except_types)}
    return tuple(sorted(named | set(fleet.message_types)))


def takes_every_type(fleet: Fleet) -> bool:
    """True when some shard takes messages of types the file doesn't name."""
    return any(not shard.types for shard in fleet.shards)


def delivery_factor(fleet: Fleet) -> float:
    """How many deliveries Pub/Sub charges for each message: one for each subscription on its topic, filtered out or not.

    Dead letters and strays' own subscriptions count too, since the service matches each message against them.
    """
    counts = {topic.id: 1 for topic in topics(fleet)}  # the strays subscription
    for shard in fleet.shards:
        for topic in topics(fleet):
            if (shard.slots & topic.slots).ranges:
                counts[topic.id] += 1
    return sum(counts.values()) / len(counts)

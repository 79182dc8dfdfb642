"""What a fleet is made of on Pub/Sub: topics, subscriptions and their filters. Pure.

Every name is derived here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256

from shardctl.fleet.filters import MAX_FILTER_BYTES, ShardFilter, beginnings, compile_filter, strays_filter
from shardctl.fleet.keyspace import SlotSet, digits_of
from shardctl.fleet.settings.secrets import SecretRef
from shardctl.fleet.spec import Fleet, Shard

USD_PER_DELIVERED_TIB = 40
RETRY_OF_TABLES, RETRY_OF_BACKENDS = timedelta(seconds=1), timedelta(seconds=10)
RETRIED_WITHIN = timedelta(days=1)  # a producer that publishes a write again, with the same idempotency key
KEPT_FOR_PEOPLE = timedelta(days=31)  # dead letters and strays; the most Pub/Sub allows


@dataclass(frozen=True, slots=True)
class Topic:
    """One of the fleet's 2^topic_bits topics. It carries the slots whose digits begin with `prefix`."""

    id: str
    prefix: str
    slots: SlotSet


@dataclass(frozen=True, slots=True)
class Subscription:
    """One shard's subscription of one generation on one topic. `slots` are the shard's on that topic."""

    id: str
    topic: Topic
    filter: str
    generation: int
    slots: SlotSet


@dataclass(frozen=True, slots=True)
class Strays:
    """The subscription on one topic for messages that no shard's filter takes.

    `blind` lists the beginnings after which a malformed slot may match nothing: those digits alone, or followed by
    anything but a digit. It is empty unless a shard's filter has no room for them; a malformed slot may then also reach
    two shards, and each dead-letters it.
    """

    id: str
    topic: Topic
    filter: str
    blind: tuple[str, ...]


def topics(fleet: Fleet) -> tuple[Topic, ...]:
    return _topics(fleet.topic.name, fleet.routing.topic_bits, fleet.routing.slot_bits)


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


def database_url_variable(shard: Shard) -> str:
    """The environment variable that holds a shard's database URL: `SHARDCTL_DATABASE_URL_EU_1` for shard `eu-1`."""
    return f"SHARDCTL_DATABASE_URL_{shard.name.upper().replace('-', '_')}"


def database_secret(fleet: Fleet, shard: Shard) -> SecretRef | None:
    """Where the shard's database URL is kept: as the file says, or in `orders-s0-db`. None where consumers log in by IAM."""
    cloud_sql = shard.database and shard.database.cloud_sql
    if cloud_sql and cloud_sql.iam:
        return None
    named = shard.database and shard.database.secret
    return named or SecretRef.model_construct(name=f"{shard_id(fleet, shard)}-db")


def generations(shard: Shard) -> tuple[Shard, ...]:
    """The shard as each generation that reads messages has it, the oldest first: one, unless its slots are moving."""
    before = (
        shard.model_copy(update={"generation": earlier.generation, "slots": earlier.slots, "previous": None})
        for earlier in shard.previous or ()
    )
    return tuple(version for version in (*before, shard) if version.slots.ranges)


def unlisted(shard: Shard, active: Iterable[tuple[int, int]]) -> dict[int, SlotSet]:
    """The slots that the file doesn't give the shard in their generation, by generation. `active`: slots with generations."""
    listed = {version.generation: version.slots for version in generations(shard)}
    slots_by_generation: dict[int, list[int]] = {}
    for slot, generation in active:
        if slot not in listed.get(generation, SlotSet()):
            slots_by_generation.setdefault(generation, []).append(slot)
    return {generation: SlotSet.of(slots) for generation, slots in sorted(slots_by_generation.items())}


def every_subscription(fleet: Fleet, shard: Shard) -> tuple[Subscription, ...]:
    """The subscriptions of all generations that the shard reads."""
    return tuple(sub for generation in generations(shard) for sub in subscriptions(fleet, generation))


def subscriptions(fleet: Fleet, shard: Shard) -> tuple[Subscription, ...]:
    """Those of the shard's own generation, one on each topic its slots touch: `orders-s0-g1`, `orders-s0-g1-t5` on topic 5."""
    subs = []
    for number, topic in enumerate(topics(fleet)):
        slots = shard.slots & topic.slots
        if not slots.ranges:
            continue
        suffix = f"-t{number}" if fleet.routing.topic_bits else ""
        text = _filter_on(fleet, shard, topic).text
        subs.append(
            Subscription(f"{shard_id(fleet, shard)}-g{shard.generation}{suffix}", topic, text, shard.generation, slots)
        )
    return tuple(subs)


def _filter_on(fleet: Fleet, shard: Shard, topic: Topic) -> ShardFilter:
    return compile_filter(
        shard.slots & topic.slots,
        fleet.routing.slot_bits,
        within=topic.prefix,
        types=shard.types,
        except_types=shard.except_types,
        names=fleet.routing.attributes.in_filters,
    )


def push_endpoint(fleet: Fleet, shard: Shard, subscription: Subscription) -> str | None:
    """Where a shard's subscription pushes to: one path a shard, under it one a subscription. None where consumers pull."""
    url = fleet.delivery.url
    return f"{url.rstrip('/')}/{shard.name}/{subscription.id}" if fleet.delivery.kind == "push" and url else None


def strays(fleet: Fleet) -> tuple[Strays, ...]:
    """One strays subscription a topic: with the shards' filters, its filter leaves no message for the service to drop."""
    types = () if takes_every_type(fleet) else known_types(fleet)
    names = fleet.routing.attributes.in_filters
    all_strays = []
    for number, topic in enumerate(topics(fleet)):
        nobodys, blind = _left_out(fleet, topic)
        text, named = strays_filter(within=topic.prefix, types=types, names=names), 0
        while named < len(nobodys):
            longer = strays_filter(nobodys[: named + 1], within=topic.prefix, types=types, names=names)
            if len(longer.encode()) > MAX_FILTER_BYTES:
                break
            text, named = longer, named + 1
        suffix = f"-t{number}" if fleet.routing.topic_bits else ""
        if (
            named
        ):  # the beginnings depend on the shards' slots, and a subscription's filter can't be changed: hence a new name
            suffix += f"-{sha256(text.encode()).hexdigest()[:6]}"
        all_strays.append(Strays(f"{fleet.fleet}-strays{suffix}", topic, text, blind))
    return tuple(all_strays)


def is_strays(fleet: Fleet, name: str) -> bool:
    """Whether a subscription is, or was under other slots, one of the fleet's for strays."""
    return re.fullmatch(strays_pattern(fleet), name) is not None


def strays_pattern(fleet: Fleet) -> str:
    """What the names of the fleet's strays subscriptions match, whatever its slots are or were; as RE2 reads it too."""
    return f"{fleet.fleet}-strays(-t[0-9]+)?(-[0-9a-f]{{6}})?"


def _left_out(fleet: Fleet, topic: Topic) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Beginnings after which no shard takes a malformed slot of any type, and of some type."""
    shards = [shard for shard in fleet.shards if (shard.slots & topic.slots).ranges]
    compiled = [(shard, _filter_on(fleet, shard, topic)) for shard in shards]
    if all(shard_filter.padded for _, shard_filter in compiled):
        return (), ()
    types = (*known_types(fleet), "") if takes_every_type(fleet) else known_types(fleet)  # "": any type not named
    nobodys, blind = [], []
    prefixes = [prefix for shard in shards for prefix in (shard.slots & topic.slots).prefixes(fleet.routing.slot_bits)]
    # By prefix, since asking every shard would take minutes for 10,000 of them.
    by_prefix: dict[str, list[tuple[Shard, ShardFilter]]] = {}
    for shard, shard_filter in compiled:
        for prefix in {prefix for selection in shard_filter.selections for prefix in selection.prefixes}:
            by_prefix.setdefault(prefix, []).append((shard, shard_filter))
    for beginning in beginnings(prefixes, topic.prefix):
        possible = [
            candidate for length in range(len(beginning) + 1) for candidate in by_prefix.get(beginning[:length], ())
        ]
        takers = [shard for shard, shard_filter in possible if shard_filter.takes_slot(beginning)]
        if not all(any(shard.takes(name) for shard in takers) for name in types):
            blind.append(beginning)
            if not takers:
                nobodys.append(beginning)
    return tuple(nobodys), tuple(blind)


def cloud_labels(fleet: Fleet) -> dict[str, str]:
    """The labels of topics and subscriptions in Google Cloud, which takes no key with a domain."""
    return {"shardctl-fleet": fleet.fleet, **{key: value for key, value in fleet.labels.items() if "/" not in key}}


def dead_letter_topic(fleet: Fleet) -> str:
    return f"{fleet.topic.name}-dead"


def dead_letter_subscription(fleet: Fleet) -> str:
    return f"{fleet.fleet}-dead"


def retry_minimum(fleet: Fleet) -> timedelta:
    """The least time until Pub/Sub delivers a message again; what is configured, or as short as what the fleet calls can bear.

    A backend that refuses calls is given time. A database is not asked again by redelivery: its messages are kept under lease.
    """
    settings = fleet.subscription
    if settings.retry_minimum is not None:
        return settings.retry_minimum
    calls = any(kind.http for kind in fleet.message_types.values())
    return min(RETRY_OF_BACKENDS if calls else RETRY_OF_TABLES, settings.retry_maximum)


def redelivery_reach(fleet: Fleet) -> timedelta:
    """How long after a write was published first its subscription can bring it again, also as a retry that came within a day."""
    return fleet.subscription.retention + RETRIED_WITHIN


def inbox_retention(fleet: Fleet, shard: Shard) -> timedelta:
    """How long after its publishing a shard remembers an applied write; what is configured, or as long as Pub/Sub can bring it.

    What comes later is a dead letter that a person replays: `shardctl.deadletter` refuses one older than this.
    """
    return shard.consumer.inbox_retention or redelivery_reach(fleet)


def letter_retention(fleet: Fleet, shard: Shard) -> timedelta:
    """How long after its publishing a shard remembers that a write was dead-lettered or replayed: as long as its letter lasts."""
    return max(fleet.subscription.retention + KEPT_FOR_PEOPLE, inbox_retention(fleet, shard))


def known_types(fleet: Fleet) -> tuple[str, ...]:
    """Every message type the file names, sorted."""
    named = {name for shard in fleet.shards for name in (*shard.types, *shard.except_types)}
    return tuple(sorted(named | set(fleet.message_types)))


def takes_every_type(fleet: Fleet) -> bool:
    """True when some shard takes messages of types the file doesn't name."""
    return any(not shard.types for shard in fleet.shards)


def delivery_factor(fleet: Fleet) -> float:
    """How many deliveries Pub/Sub charges for each message: one a subscription on its topic, filtered out or not.

    The strays subscription counts like any other. Slots get equal shares, so the topics count alike.
    """
    counts = {topic.id: 1 for topic in topics(fleet)}  # the strays subscription
    for shard in fleet.shards:
        for topic in topics(fleet):
            if (shard.slots & topic.slots).ranges:
                counts[topic.id] += 1
    return sum(counts.values()) / len(counts)

"""A shard's own slice of configuration: `shardctl render` puts it into a ConfigMap, `python -m consumer` reads it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from shardctl.fleet.keyspace import SlotRule
from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Duration, Slots
from shardctl.fleet.settings.consuming import Batching, Subscriptions
from shardctl.fleet.settings.databases import DEFAULT_KINDS, DatabaseKinds
from shardctl.fleet.settings.delivery import Delivery
from shardctl.fleet.settings.leader import Leader
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.settings.redis import Nodes, Sentinel
from shardctl.fleet.settings.routing import Attributes
from shardctl.fleet.settings.tracing import Tracing

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet, Shard


LEAST_OUTSTANDING, MOST_OUTSTANDING = 5_000, 20_000  # messages, unless the file says otherwise


class Generation(Model):
    """The subscriptions that one generation of a shard reads, and the slots they carry."""

    number: int
    slots: Slots
    subscriptions: tuple[str, ...] = Field(strict=False)


class ShardConfig(Model):
    """Everything a consumer needs but the URLs of database and Redis, which come by environment: the URLs, or files with them."""

    fleet: str
    shard: str
    project: str
    pubsub_endpoint: str | None = Field(None, description="Where Pub/Sub is reached; by default its global endpoint.")
    slot_bits: int
    modulo: int = 0
    attributes: Attributes
    message_types: dict[str, MessageType]
    emitted_types: dict[str, MessageType] = {}
    databases: DatabaseKinds = Field(DEFAULT_KINDS, description="What emitted writes must fit.")
    generations: tuple[Generation, ...] = Field(strict=False)
    dead_letter_topic: str
    topics: tuple[str, ...] = Field(strict=False, description="The fleet's, in the order of their slots.")
    subscription: Subscriptions
    consumer: Batching
    inbox_retention: Duration
    letter_retention: Duration
    redis_cluster: Annotated[Nodes | None, Field(strict=False)] = None
    redis_sentinel: Sentinel | None = None
    redis_iam: bool = Field(False, description="Log in to Redis by IAM, as the pod's Google service account.")
    leader: Leader = Leader()
    tracing: Tracing | None = None
    delivery: Delivery = Delivery()
    replicas: int = Field(1, description="How many replicas share the rate limit while Redis is unavailable.")

    @cached_property
    def rule(self) -> SlotRule:
        return SlotRule(self.slot_bits, self.modulo)

    @property
    def outstanding_messages(self) -> int:
        """How many messages each subscription's stream may hold.

        Batches must get full while others are in flight. While slots move, messages of those that aren't here yet share the room
        with those of slots that are.
        """
        settings = self.consumer
        if settings.max_outstanding_messages is not None:
            return settings.max_outstanding_messages
        if len(self.generations) > 1:
            return MOST_OUTSTANDING
        return min(max((settings.concurrency + 3) * settings.batch_max_rows, LEAST_OUTSTANDING), MOST_OUTSTANDING)

    @property
    def redis_prefix(self) -> str:
        """Stands in braces at the beginning of every key in Redis. So a cluster keeps all keys of a shard on one server."""
        return f"{self.fleet}:{self.shard}"


def _writers(shard: Shard) -> int:
    """The most replicas that may write at once."""
    return shard.autoscaling.most if shard.leader.kind == "none" else 1


def slice_of(fleet: Fleet, shard: Shard) -> ShardConfig:
    from shardctl.fleet import topology  # describes the whole fleet; a consumer that reads its slice doesn't need it

    takes = {name: kind for name, kind in fleet.message_types.items() if shard.takes(name)}
    emitted = fleet.emitted_by(shard)
    return ShardConfig(
        fleet=fleet.fleet,
        shard=shard.name,
        project=fleet.project,
        pubsub_endpoint=fleet.topic.endpoint,
        slot_bits=fleet.routing.slot_bits,
        modulo=fleet.routing.modulo,
        attributes=fleet.routing.attributes,
        message_types=takes,
        emitted_types=emitted,
        databases=fleet.databases if emitted else DEFAULT_KINDS,  # a change of this file rolls the pods
        generations=tuple(
            Generation(
                number=version.generation,
                slots=version.slots,
                subscriptions=tuple(sub.id for sub in topology.subscriptions(fleet, version)),
            )
            for version in topology.generations(shard)
        ),
        dead_letter_topic=topology.dead_letter_topic(fleet),
        topics=tuple(topic.id for topic in topology.topics(fleet)),
        subscription=fleet.subscription,
        consumer=shard.consumer,
        inbox_retention=topology.inbox_retention(fleet, shard),
        letter_retention=topology.letter_retention(fleet, shard),
        redis_cluster=fleet.redis.cluster,
        redis_sentinel=fleet.redis.sentinel,
        redis_iam=bool(fleet.redis.memorystore and fleet.redis.memorystore.iam),
        leader=shard.leader,
        tracing=fleet.tracing,
        delivery=fleet.delivery,
        # Only where it matters, as above.
        replicas=_writers(shard) if shard.consumer.rate_limit else 1,
    )

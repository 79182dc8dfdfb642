"""The attributes that say why a message is a dead letter: those of consumers, and those of Pub/Sub's own policy."""

from __future__ import annotations

from collections.abc import Mapping

# Set by consumers.
REASON = "shardctl-reason"
ERROR = "shardctl-error"
SHARD = "shardctl-shard"
SLOT = "shardctl-slot"
MESSAGE_ID = "shardctl-message-id"
PUBLISH_TIME_US = "shardctl-publish-time-us"
SUBSCRIPTION = "shardctl-subscription"
SHORTENED = "shardctl-shortened"  # what is missing: this letter can be read, but not be replayed
OURS = frozenset((REASON, ERROR, SHARD, SLOT, MESSAGE_ID, PUBLISH_TIME_US, SUBSCRIPTION, SHORTENED))

BEHIND_PARKED = "behind_parked"  # the reason of a write that is parked behind another one of its key
KEY_REUSED = "key_reused"  # the reason of a write whose idempotency key its producer had used for another one

# Set by Pub/Sub, which sends the rest of the message as it was.
SOURCE = "CloudPubSubDeadLetterSource"
SOURCE_SUBSCRIPTION = f"{SOURCE}Subscription"
SOURCE_DELIVERIES = f"{SOURCE}DeliveryCount"
SOURCE_PUBLISH_TIME = f"{SOURCE}TopicPublishTime"

RESERVED = "goog"  # the service's own, such as those of a topic's schema: it refuses them in a publish request


def by_consumer(attributes: Mapping[str, str]) -> bool:
    """A consumer sets these always, and always together."""
    return all(name in attributes for name in (REASON, SHARD, SLOT, MESSAGE_ID, PUBLISH_TIME_US, SUBSCRIPTION))


def of_others(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes of a letter that no consumer wrote: any consumer's attributes on it come from its producer."""
    return {name: value for name, value in attributes.items() if name not in OURS}


def original(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes that a message had before it was dead-lettered."""
    return {
        name: value
        for name, value in attributes.items()
        if name not in OURS and not name.startswith((SOURCE, RESERVED))
    }

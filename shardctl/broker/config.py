"""Configuration as clients send it: checked, given the service's defaults, updated by field masks."""

from __future__ import annotations

import re
from collections.abc import Collection

from shardctl.broker import names
from shardctl.broker.errors import InvalidArgumentError, UnimplementedError
from shardctl.broker.filter import compile_filter
from shardctl.broker.protos import Proto, to_seconds
from shardctl.broker.settings import DEFAULT_ACK_DEADLINE_SECONDS, DEFAULT_RETENTION_SECONDS, Backoff, Settings

DAY_SECONDS = 86_400
ACK_DEADLINE_SECONDS = (10, 600)
RETENTION_SECONDS = (600, 31 * DAY_SECONDS)
DEFAULT_EXPIRATION_SECONDS = 31 * DAY_SECONDS
MAX_BACKOFF_SECONDS = 600
DELIVERY_ATTEMPTS = (5, 100)
MAX_LABELS = 64
_LABEL = re.compile(r"[\w-]{0,63}")

TOPIC_MUTABLE = frozenset(
    {
        "ingestion_data_source_settings",
        "kms_key_name",
        "labels",
        "message_retention_duration",
        "message_storage_policy",
        "message_transforms",
        "schema_settings",
    }
)
# Without them a topic would publish messages that the service changes, refuses or gets from elsewhere.
TOPIC_UNSUPPORTED = frozenset({"ingestion_data_source_settings", "message_transforms", "tags"})
# Without them a subscription would deliver messages that the service changes or writes elsewhere.
SUBSCRIPTION_UNSUPPORTED = frozenset(
    {"bigquery_config", "bigtable_config", "cloud_storage_config", "message_transforms", "tags"}
)
_KMS_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")
SUBSCRIPTION_MUTABLE = frozenset(
    {
        "ack_deadline_seconds",
        "bigquery_config",
        "cloud_storage_config",
        "dead_letter_policy",
        "enable_exactly_once_delivery",
        "expiration_policy",
        "labels",
        "message_retention_duration",
        "message_transforms",
        "push_config",
        "retain_acked_messages",
        "retry_policy",
    }
)
SNAPSHOT_MUTABLE = frozenset({"expire_time", "labels"})


def check_topic(topic: Proto) -> None:
    """Raises InvalidArgumentError for what the service would refuse in a topic, UnimplementedError for what only it can do.

    A key and the regions are shown as they were set. Nothing is encrypted by the key: messages are in memory alone.
    """
    names.check("topics", topic.name)
    check_labels(topic)
    if topic.HasField("message_retention_duration"):
        _check_range("message_retention_duration", to_seconds(topic.message_retention_duration), RETENTION_SECONDS)
    _refuse_fields(topic, TOPIC_UNSUPPORTED)
    if topic.kms_key_name and not _KMS_KEY.fullmatch(topic.kms_key_name):
        raise InvalidArgumentError(
            f"Invalid kms_key_name: {topic.kms_key_name!r}; it must have the form "
            "projects/*/locations/*/keyRings/*/cryptoKeys/*."
        )
    if topic.HasField("message_storage_policy") and not topic.message_storage_policy.allowed_persistence_regions:
        raise InvalidArgumentError("Invalid message_storage_policy: it must allow at least one region.")


def complete_subscription(subscription: Proto) -> Settings:
    """Fills in the service's defaults, in place, and returns what the core needs; raises as `check_topic` does."""
    names.check("subscriptions", subscription.name)
    if subscription.topic != names.DELETED_TOPIC:
        names.check("topics", subscription.topic)
    check_labels(subscription)
    _refuse_fields(subscription, SUBSCRIPTION_UNSUPPORTED)
    subscription.ack_deadline_seconds = subscription.ack_deadline_seconds or DEFAULT_ACK_DEADLINE_SECONDS
    _check_range("ack_deadline_seconds", subscription.ack_deadline_seconds, ACK_DEADLINE_SECONDS)
    if not subscription.HasField("message_retention_duration"):
        subscription.message_retention_duration.seconds = DEFAULT_RETENTION_SECONDS
    retention_seconds = to_seconds(subscription.message_retention_duration)
    _check_range("message_retention_duration", retention_seconds, RETENTION_SECONDS)
    _complete_expiration(subscription)
    if subscription.enable_exactly_once_delivery and subscription.push_config.push_endpoint:
        raise InvalidArgumentError("Exactly-once delivery works with pull subscriptions only.")
    if not subscription.HasField("push_config"):
        subscription.push_config.SetInParent()
    check_push(subscription.push_config)
    max_attempts, dead_letter_topic = _complete_dead_letter(subscription)
    return Settings(
        ordering=subscription.enable_message_ordering,
        exactly_once=subscription.enable_exactly_once_delivery,
        ack_deadline_seconds=subscription.ack_deadline_seconds,
        retention_seconds=retention_seconds,
        retain_acked=subscription.retain_acked_messages,
        backoff=_complete_backoff(subscription),
        max_attempts=max_attempts,
        dead_letter_topic=dead_letter_topic,
        matches=compile_filter(subscription.filter) if subscription.filter else None,
    )


def check_push(push: Proto) -> None:
    """Raises InvalidArgumentError for an endpoint that nothing can be pushed to."""
    endpoint = push.push_endpoint
    if endpoint and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", endpoint):
        raise InvalidArgumentError(f"Invalid push endpoint given (endpoint={endpoint}): it must be a URL.")
    for name, value in push.attributes.items():
        if (name, value) != ("x-goog-version", "v1"):
            raise UnimplementedError(
                f"This broker can't do the push attribute {name}={value}: it pushes by version v1 only."
            )
    if push.HasField("oidc_token") and not push.oidc_token.service_account_email:
        raise InvalidArgumentError("Invalid push_config: oidc_token needs a service_account_email.")


def apply_mask(target: Proto, source: Proto, mask: Proto, mutable: Collection[str]) -> Proto:
    """A copy of `target` with the masked fields of `source`; raises InvalidArgumentError for fields that can't change.

    A masked field that `source` leaves unset is cleared. Messages and maps are replaced whole.
    """
    if not mask.paths:
        raise InvalidArgumentError("The update_mask in the request must be set and not be empty.")
    fields = target.DESCRIPTOR.fields_by_name
    for path in mask.paths:
        name = path.partition(".")[0]
        if name not in fields:
            raise InvalidArgumentError(f"Invalid update_mask: there is no field {path}.")
        if name not in mutable:
            raise InvalidArgumentError(f"Invalid update_mask: {path} can't be changed after creation.")
    updated = type(target)()
    updated.CopyFrom(target)
    mask.MergeMessage(source, updated, replace_message_field=True, replace_repeated_field=True)
    return updated


def _check_range(what: str, value: float, limits: tuple[int, int]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise InvalidArgumentError(f"Invalid {what}: {value:g}; it must lie between {low} and {high}.")


def check_labels(resource: Proto) -> None:
    """Raises InvalidArgumentError."""
    if len(resource.labels) > MAX_LABELS:
        raise InvalidArgumentError(f"At most {MAX_LABELS} labels are allowed.")
    for key, value in resource.labels.items():
        fits = all(_LABEL.fullmatch(text) and text == text.lower() for text in (key, value))
        if not (fits and key[:1].isalpha()):
            raise InvalidArgumentError(
                f"Invalid label {key[:70]!r}: {value[:70]!r}. A label has up to 63 lower-case letters, digits, _ and -, "
                "and its key begins with a letter."
            )


def _refuse_fields(resource: Proto, unsupported: Collection[str]) -> None:
    for field, _ in resource.ListFields():
        if field.name in unsupported:
            raise UnimplementedError(f"This broker can't do {field.name}: leave it out, or use Pub/Sub itself.")


def _complete_expiration(subscription: Proto) -> None:
    if not subscription.HasField("expiration_policy"):
        subscription.expiration_policy.ttl.seconds = DEFAULT_EXPIRATION_SECONDS
    elif subscription.expiration_policy.HasField("ttl"):
        ttl_seconds = to_seconds(subscription.expiration_policy.ttl)
        if ttl_seconds < DAY_SECONDS:
            raise InvalidArgumentError(f"Invalid expiration_policy.ttl: {ttl_seconds:g}; at least a day is needed.")


def _complete_backoff(subscription: Proto) -> Backoff | None:
    if not subscription.HasField("retry_policy"):
        return None
    policy, defaults = subscription.retry_policy, Backoff()
    if not policy.HasField("minimum_backoff"):
        policy.minimum_backoff.seconds = int(defaults.minimum_seconds)
    if not policy.HasField("maximum_backoff"):
        policy.maximum_backoff.seconds = int(defaults.maximum_seconds)
    backoff = Backoff(to_seconds(policy.minimum_backoff), to_seconds(policy.maximum_backoff))
    if not 0 <= backoff.minimum_seconds <= backoff.maximum_seconds <= MAX_BACKOFF_SECONDS:
        raise InvalidArgumentError("Invalid retry_policy: 0 <= minimum_backoff <= maximum_backoff <= 600 s is needed.")
    return backoff


def _complete_dead_letter(subscription: Proto) -> tuple[int, str]:
    if not subscription.HasField("dead_letter_policy"):
        return 0, ""
    policy = subscription.dead_letter_policy
    if policy.dead_letter_topic != names.DELETED_TOPIC:
        names.check("topics", policy.dead_letter_topic)
    policy.max_delivery_attempts = policy.max_delivery_attempts or DELIVERY_ATTEMPTS[0]
    _check_range("max_delivery_attempts", policy.max_delivery_attempts, DELIVERY_ATTEMPTS)
    return policy.max_delivery_attempts, policy.dead_letter_topic

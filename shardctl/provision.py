"""Topics, subscriptions and tables through their own APIs: existing ones are compared, missing ones are created.

First a plan, then its execution: a dry run is the plan alone. Running it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from google.api_core.exceptions import (
    Aborted,
    AlreadyExists,
    GoogleAPICallError,
    NotFound,
    RetryError,
    ServiceUnavailable,
    Unknown,
)
from google.api_core.retry import Retry, if_exception_type
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import (
    DeadLetterPolicy,
    ExpirationPolicy,
    MessageStoragePolicy,
    PushConfig,
    RetryPolicy,
    Subscription,
    Topic,
)

from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet, Shard

if TYPE_CHECKING:
    from shardctl.shard.membership import Membership
    from shardctl.shard.takeover import Takeover

TIMEOUT_SECONDS = 30.0
DELETED_TOPIC = "_deleted-topic_"  # what Pub/Sub gives a subscription whose topic is gone
# Reads come first. The library would retry some of them for ten minutes where nothing listens.
_AGAIN = Retry(if_exception_type(Aborted, ServiceUnavailable, Unknown), timeout=60.0)

Action = Literal["create", "update", "identical"]
# What Pub/Sub lets one change later, as field masks name it.
MUTABLE = (
    "ack_deadline_seconds",
    "message_retention_duration",
    "retain_acked_messages",
    "retry_policy",
    "dead_letter_policy",
    "expiration_policy",
    "push_config",
)


class ProvisionError(ShardctlError):
    """Pub/Sub or a database differs from the file, and can't be changed in place."""


@dataclass(frozen=True, slots=True)
class Step:
    """One resource that the fleet needs, and the action that provides it. `fields` names what differs.

    `lacks` says what a database's tables lack and isn't added here: a table that is there is changed by `shardctl migrate` alone.
    """

    action: Action
    kind: Literal["topic", "subscription", "database"]
    name: str
    fields: tuple[str, ...] = ()
    wanted: Any = None
    live: Any = None
    lacks: tuple[str, ...] = ()

    @property
    def is_new_database(self) -> bool:
        from shardctl.shard import schema

        return self.kind == "database" and self.action == "create" and schema.fence.name in self.fields

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}" + (f" ({', '.join(self.fields)})" if self.fields else "")


def provision_pubsub(
    fleet: Fleet,
    publisher: Any,
    subscriber: Any,
    *,
    dry_run: bool = False,
    done: Callable[[Step], None] = lambda _: None,
) -> tuple[Step, ...]:
    """Create and update the fleet's topics and subscriptions, or report what would change. `done` is called after each step.

    The clients are `google.cloud.pubsub_v1`'s. Raises ProvisionError before anything is changed where something that
    can't be changed in place differs from the file.
    """
    try:
        steps = plan_pubsub(fleet, publisher, subscriber)
        for step in steps:
            if not dry_run:
                _execute(step, publisher, subscriber)
            done(step)
    except (GoogleAPICallError, RetryError) as error:
        raise ProvisionError(
            f"Pub/Sub, project {fleet.project}: {type(error).__name__}: {error}. "
            "What was done stays; run it again when the cause is fixed."
        ) from error
    return steps


def plan_pubsub(fleet: Fleet, publisher: Any, subscriber: Any) -> tuple[Step, ...]:
    """The steps, in the order in which they can be done. Only reads. Raises ProvisionError where Pub/Sub can't follow."""
    steps, refused = survey_pubsub(fleet, publisher, subscriber)
    if refused:
        raise ProvisionError("\n".join(refused))
    return steps


def survey_pubsub(fleet: Fleet, publisher: Any, subscriber: Any) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps, and each change that can't be made in place, with the safe way. Only reads."""
    steps: list[Step] = []
    refused: list[str] = []
    for topic in wanted_topics(fleet):
        live_topic = _get(publisher.get_topic, topic=topic.name)
        if live_topic is None:
            steps.append(Step("create", "topic", topic.name, wanted=topic))
            continue
        fields = tuple(_topic_differences(topic, live_topic))
        steps.append(Step("update" if fields else "identical", "topic", topic.name, fields, topic, live_topic))
    for wanted in wanted_subscriptions(fleet):
        live = _get(subscriber.get_subscription, subscription=wanted.name)
        if live is None:
            steps.append(Step("create", "subscription", wanted.name, wanted=wanted))
            continue
        refused += _unchangeable(wanted, live)
        differ = tuple(field for field in MUTABLE if _value(wanted, field) != _value(live, field))
        steps.append(Step("update" if differ else "identical", "subscription", wanted.name, differ, wanted, live))
    return tuple(steps), tuple(refused)


def wanted_topics(fleet: Fleet) -> tuple[Topic, ...]:
    ids, settings = (*(topic.id for topic in topology.topics(fleet)), topology.dead_letter_topic(fleet)), fleet.topic
    policies: dict[str, Any] = {}
    if settings.kms_key:
        policies["kms_key_name"] = settings.kms_key
    if settings.allowed_regions:
        policies["message_storage_policy"] = MessageStoragePolicy(
            allowed_persistence_regions=settings.allowed_regions, enforce_in_transit=settings.enforce_in_transit
        )
    return tuple(
        Topic(name=_topic_path(fleet, topic_id), labels=topology.cloud_labels(fleet), **policies) for topic_id in ids
    )


def wanted_subscriptions(fleet: Fleet) -> tuple[Subscription, ...]:
    """Strays first: from a topic's first message on, none may be lost unseen."""
    settings = fleet.subscription
    policies = {
        "retry_policy": RetryPolicy(
            minimum_backoff=_duration(topology.retry_minimum(fleet)),
            maximum_backoff=_duration(settings.retry_maximum),
        ),
        "dead_letter_policy": DeadLetterPolicy(
            dead_letter_topic=_topic_path(fleet, topology.dead_letter_topic(fleet)),
            max_delivery_attempts=settings.max_delivery_attempts,
        ),
    }

    def subscription(name: str, topic: str, text: str, kept: timedelta, **others: Any) -> Subscription:
        return Subscription(
            name=f"projects/{fleet.project}/subscriptions/{name}",
            topic=_topic_path(fleet, topic),
            filter=text,
            enable_message_ordering=True,
            ack_deadline_seconds=int(settings.ack_deadline.total_seconds()),
            message_retention_duration=_duration(kept),
            expiration_policy=ExpirationPolicy(),  # without a time to live: never
            labels=topology.cloud_labels(fleet),
            **others,
        )

    kept = topology.KEPT_FOR_PEOPLE
    return (
        subscription(topology.dead_letter_subscription(fleet), topology.dead_letter_topic(fleet), "", kept),
        *(subscription(stray.id, stray.topic.id, stray.filter, kept) for stray in topology.strays(fleet)),
        *(
            subscription(
                sub.id,
                sub.topic.id,
                sub.filter,
                settings.retention,
                retain_acked_messages=settings.retain_acked,
                push_config=_push_config(fleet, topology.push_endpoint(fleet, shard, sub)),
                **policies,
            )
            for shard in fleet.shards
            for sub in topology.every_subscription(fleet, shard)
        ),
    )


def _push_config(fleet: Fleet, endpoint: str | None) -> PushConfig:
    """An empty one lets consumers pull."""
    if endpoint is None:
        return PushConfig()
    delivery = fleet.delivery
    account = delivery.service_account or ""
    wrapping = {} if delivery.wrapped else {"no_wrapper": PushConfig.NoWrapper(write_metadata=True)}
    token = PushConfig.OidcToken(service_account_email=account, audience=delivery.token_audience)
    return PushConfig(push_endpoint=endpoint, oidc_token=token, **wrapping)


def _topic_path(fleet: Fleet, topic: str) -> str:
    return f"projects/{fleet.project}/topics/{topic}"


def _duration(value: timedelta) -> Duration:
    return Duration(seconds=int(value.total_seconds()))


def _get(call: Callable[..., Any], **request: str) -> Any:
    try:
        return call(request=request, retry=_AGAIN, timeout=TIMEOUT_SECONDS)
    except NotFound:
        return None


def _value(subscription: Subscription, field: str) -> Any:
    """A field as bytes or a number: an unset policy equals an empty one, but not an unset expiry, which is 31 days."""
    message = Subscription.pb(subscription)
    if field == "expiration_policy" and not message.HasField(field):
        return None
    value = getattr(message, field)
    if (
        field == "push_config"
    ):  # the service adds attributes of its own, and states explicitly that messages are wrapped
        value = type(value)(
            push_endpoint=value.push_endpoint,
            oidc_token=value.oidc_token if value.push_endpoint else None,
            no_wrapper=value.no_wrapper if value.HasField("no_wrapper") else None,
        )
    return value.SerializeToString(deterministic=True) if hasattr(value, "SerializeToString") else value


def _topic_differences(wanted: Topic, live: Topic) -> Iterator[str]:
    """What the file leaves out is left as it is: an organisation's policy sets the regions of a topic that names none."""
    if wanted.kms_key_name and wanted.kms_key_name != live.kms_key_name:
        yield "kms_key_name"
    if wanted.message_storage_policy and _stored(wanted) != _stored(live):
        yield "message_storage_policy"


def _stored(topic: Topic) -> tuple[frozenset[str], bool]:
    policy = topic.message_storage_policy
    return frozenset(policy.allowed_persistence_regions), policy.enforce_in_transit


def _unchangeable(wanted: Subscription, live: Subscription) -> Iterator[str]:
    if live.detached:
        yield (
            f"{wanted.name}: it is detached, so it holds nothing and gets nothing, and Pub/Sub can't attach it again. What was "
            "published since then never reached it. Delete the subscription, run `shardctl provision`, and publish what "
            "is missing again."
        )
    elif live.topic == DELETED_TOPIC:
        yield (
            f"{wanted.name}: its topic was deleted, the file wants {wanted.topic!r}, and Pub/Sub can't attach it to another. Let "
            "the consumers read what it still holds, then delete the subscription and run this again."
        )
    elif live.topic != wanted.topic:
        yield (
            f"{wanted.name}: its topic is {live.topic!r}, the file wants {wanted.topic!r}, and Pub/Sub can't change it. A "
            "topic's name is fixed for a fleet's life, and no rebalance changes it: undo the edit of `topic`, or begin a new "
            "fleet, under another `fleet`, on the new topic."
        )
    for field in ("filter", "enable_message_ordering"):
        if getattr(wanted, field) != getattr(live, field):
            yield (
                f"{wanted.name}: its {field} is {getattr(live, field)!r}, the file wants {getattr(wanted, field)!r}, "
                "and Pub/Sub can't change it. Deleting it would lose its backlog: give the shard a new generation "
                "with `shardctl rebalance`, or undo the edit of the file."
            )


def _execute(step: Step, publisher: Any, subscriber: Any) -> None:
    try:
        if step.action == "create" and step.kind == "topic":
            publisher.create_topic(request=step.wanted, timeout=TIMEOUT_SECONDS)
        elif step.action == "create":
            subscriber.create_subscription(request=step.wanted, timeout=TIMEOUT_SECONDS)
        elif step.action == "update" and step.kind == "topic":
            request = {"topic": step.wanted, "update_mask": {"paths": list(step.fields)}}
            publisher.update_topic(request=request, timeout=TIMEOUT_SECONDS)
        elif step.action == "update":
            request = {"subscription": step.wanted, "update_mask": {"paths": list(step.fields)}}
            subscriber.update_subscription(request=request, timeout=TIMEOUT_SECONDS)
    except AlreadyExists as error:
        raise ProvisionError(f"{step.name}: somebody else created it at this moment. Run it again.") from error


def provision_database(
    fleet: Fleet, shard: Shard, url: str, upgraded: Callable[[str, int], None] = lambda _, __: None
) -> Step:
    """`make_tables`, then `move_old_rows`. Safe to run again. Raises ProvisionError, which never shows the password."""
    step = make_tables(fleet, shard, url)
    move_old_rows(fleet, shard, url, upgraded)
    return step


def make_tables(fleet: Fleet, shard: Shard, url: str, takeover: Takeover | None = None) -> Step:
    """Create the tables that are missing in a shard's database and hold its slots active. Safe to run again.

    From the same commit on the database says that it is this shard's. One that belongs to another is refused, unless it is taken
    over and has no consumer.
    What 0.1.0 made is upgraded first, but for the rows of its inbox: consumers may run from now on, and `move_old_rows` is next.
    While slots move, a shard's new database holds none: they arrive by `shardctl rebalance`.
    Raises ProvisionError, which never shows the password.
    """
    from shardctl.shard import mapped, membership, schema, upgrade
    from shardctl.shard import takeover as takeovers
    from shardctl.shard.databaseurl import shown
    from shardctl.shard.keys import given_out
    from shardctl.shard.membership import Membership
    from shardctl.shard.storage import without_transactions

    own = Membership(fleet.fleet, shard.name)
    with _database_of(own, url, taking=True) as engine:
        name = f"{shard.name} at {shown(engine.url)}"
        former = takeovers.former(engine, own, takeover or takeovers.NOBODY)
        rewritten = upgrade.begin(engine)
        before = _tables(engine)
        kinds = {name: kind for name, kind in fleet.message_types.items() if shard.takes(name)}
        with engine.connect() as connection:
            faults = list(_of_another(connection, shard)) or [
                *given_out(connection, kinds),
                *without_transactions(connection, kinds.values()),
            ]
        if faults:
            raise ProvisionError(f"database of shard {name}: " + "\n".join(faults))
        owned = shard.slots if shard.previous is None else SlotSet()
        schema.create(engine, kinds, owned, shard.generation, own, former)
        made = tuple(sorted(_tables(engine) - before))
        with engine.connect() as connection:
            if fault := schema.fault_of_version(connection, beside_old_inbox=True):
                raise ProvisionError(f"database of shard {name}: {fault}")
            lacks = tuple(map(str, mapped.lacking(connection, kinds)))
    if rewritten or former:
        taken = (membership.table.name,) if former else ()
        return Step("update", "database", name, (*rewritten, *made, *taken), lacks=lacks)
    return Step("create" if made else "identical", "database", name, made, lacks=lacks)


def _of_another(connection: Any, shard: Shard) -> Iterator[str]:
    """Why a database isn't the shard's: consumers of the shard would take none of its writes there, or another shard's."""
    from sqlalchemy import select

    from shardctl.shard import schema

    if not connection.dialect.has_table(connection, schema.lanes.name):
        return
    table = schema.lanes.c
    query = select(table.slot, table.generation).where(table.state == schema.LaneState.ACTIVE)
    for generation, slots in topology.unlisted(shard, connection.execute(query)).items():
        yield (
            f"it holds slots {slots} active in generation {generation}, where the file doesn't have them. If its URL names the "
            "database of another shard, or of another fleet, fix it. Else take the file that the last `shardctl rebalance` wrote."
        )


def move_old_rows(fleet: Fleet, shard: Shard, url: str, upgraded: Callable[[str, int], None]) -> bool:
    """Move the rows of 0.1.0's inbox into this version's; whether there were any. Safe to run again, and beside consumers.

    `upgraded` hears of the table, and of how many of its rows are done. Raises ProvisionError.
    """
    from shardctl.shard import upgrade
    from shardctl.shard.membership import Membership

    with _database_of(Membership(fleet.fleet, shard.name), url) as engine:
        return upgrade.finish(engine, upgraded)


@contextmanager
def _database_of(own: Membership, url: str, *, taking: bool = False) -> Iterator[Any]:
    """An engine on the shard's database; what goes wrong comes out as ProvisionError. `taking`: the caller asks whose it is."""
    from sqlalchemy.exc import SQLAlchemyError

    from shardctl.shard import database, upgrade
    from shardctl.shard.databaseurl import shown
    from shardctl.shard.membership import ForeignDatabaseError
    from shardctl.shard.takeover import TakeoverError

    try:
        engine = database.connect(url, whose=None if taking else own)
    except database.DatabaseError as error:
        raise ProvisionError(f"shard {own.shard}: {error}") from error
    try:
        yield engine
    except SQLAlchemyError as error:
        name = shown(engine.url)
        raise ProvisionError(f"database of shard {own.shard} at {name}: {error.__cause__ or error}") from error
    except (database.DatabaseError, ForeignDatabaseError, TakeoverError, upgrade.UpgradeError) as error:
        raise ProvisionError(f"shard {own.shard}: {error}") from error
    finally:
        engine.dispose()


def refuse_foreign(fleet: Fleet, urls: Mapping[str, str], takeover: Takeover) -> None:
    """Raise ProvisionError where two shards have one database, or one belongs to another and can't be taken over now.

    Changes nothing. A database that doesn't answer is left to `make_tables`.
    """
    from shardctl.shard import database
    from shardctl.shard import takeover as takeovers
    from shardctl.shard.membership import ForeignDatabaseError, Membership

    engines: dict[str, Any] = {}
    faults = []
    with ExitStack() as opened:
        try:
            for shard, url in urls.items():
                engines[shard] = database.connect(url)
                opened.callback(engines[shard].dispose)
            database.refuse_shared(engines)
            for shard in _recorded(engines):
                try:
                    takeovers.former(engines[shard], Membership(fleet.fleet, shard), takeover)
                except (ForeignDatabaseError, takeovers.TakeoverError) as error:
                    faults.append(f"shard {shard}: {error}")
        except database.DatabaseError as error:
            raise ProvisionError(str(error)) from error
    if faults:
        raise ProvisionError("\n".join(faults))


def _recorded(engines: Mapping[str, Any]) -> Iterator[str]:
    """The shards whose databases record to whom they belong. Ends at one that doesn't answer."""
    from shardctl.shard import database, membership

    for shard, engine in engines.items():
        try:
            with database.snapshot(engine) as connection:
                recorded = membership.read(connection)
        except database.DatabaseError:
            if engine.dialect.name == "sqlite":  # a file that isn't there yet
                continue
            return
        if recorded is not None:
            yield shard


def database_urls(
    fleet: Fleet,
    given: Mapping[str, str],
    environment: Mapping[str, str],
    otherwise: str = "--no-databases skips them",
) -> dict[str, str]:
    """Each shard's database URL, from options first, then from the environment.

    Raises ProvisionError where one is missing, DatabaseUrlError where one can't be used.
    """
    from shardctl.shard import databaseurl

    for name in given:
        fleet.shard(name)
    urls = {
        shard.name: given.get(shard.name) or environment.get(topology.database_url_variable(shard))
        for shard in fleet.shards
    }
    lacking = [shard for shard in fleet.shards if not urls[shard.name]]
    if lacking:
        raise ProvisionError(
            f"no database URL for {', '.join(shard.name for shard in lacking)}. Set "
            f"{topology.database_url_variable(lacking[0])}, or give --database {lacking[0].name}=URL; {otherwise}."
        )
    present = {name: url for name, url in urls.items() if url}
    for name, url in present.items():
        try:
            databaseurl.parse(url)
        except databaseurl.DatabaseUrlError as error:
            raise type(error)(f"shard {name}: the database URL can't be used: {error}") from error
    return present


def _tables(engine: Any) -> set[str]:
    """By name, and as `schema.table` outside the session's own schema."""
    from sqlalchemy import inspect

    inspector = inspect(engine)
    others = [schema for schema in inspector.get_schema_names() if schema != inspector.default_schema_name]
    return set(inspector.get_table_names()) | {
        f"{schema}.{name}" for schema in others for name in inspector.get_table_names(schema)
    }

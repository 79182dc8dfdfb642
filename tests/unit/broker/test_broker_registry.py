"""Topics, subscriptions, snapshots: what clients may do to them, and what is refused."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from shardctl.broker import names
from shardctl.broker.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from shardctl.broker.message import encode
from shardctl.broker.orderingqueue import Reader
from shardctl.broker.protos import of
from shardctl.broker.registry import Registry

Topic, Subscription, PubsubMessage, PublishRequest = map(
    of, ("Topic", "Subscription", "PubsubMessage", "PublishRequest")
)
TOPIC, DEAD, SUB = "projects/p/topics/writes", "projects/p/topics/dead", "projects/p/subscriptions/shard"
SNAPSHOT = "projects/p/snapshots/before"


@pytest.fixture
def registry():
    made = Registry()
    made.create_topic(Topic(name=TOPIC))
    return made


def subscribe(registry, name=SUB, **options):
    return registry.create_subscription(Subscription(name=name, topic=TOPIC, **options))


def publish(registry, *bodies, now=0.0, topic=TOPIC, **options):
    return registry.publish(
        PublishRequest(topic=topic, messages=[PubsubMessage(data=body.encode(), **options) for body in bodies]), now
    )


def take(registry, now, name=SUB):
    """(ack id, PubsubMessage) of everything that can be had now."""
    core = registry.subscription(name).core
    reader = Reader(ack_deadline_seconds=10)
    batch = core.take(reader, now)
    core.detach(reader)
    return [(ack_id, PubsubMessage.FromString(message.body())) for ack_id, message, _ in batch]


def bodies(taken):
    return [message.data.decode() for _, message in taken]


def ack(registry, taken, now):
    return registry.subscription(SUB).core.ack([ack_id for ack_id, _ in taken], now)


@pytest.mark.parametrize(
    ("identifier", "fine"),
    [
        *((fine, True) for fine in ("abc", "a-b_c.d~e+f%", "a" * 255)),
        *((bad, False) for bad in ("ab", "a" * 256, "1abc", "goog-x", "a b c", "abc/def", "äbc", "")),
    ],
)
def test_names(identifier, fine):
    name = f"projects/p/topics/{identifier}"
    if fine:
        assert names.check("topics", name) == name
    else:
        with pytest.raises(InvalidArgumentError, match="an ID has 3 to 255 letters"):
            names.check("topics", name)


def test_topics_exist_once(registry):
    with pytest.raises(AlreadyExistsError):
        registry.create_topic(Topic(name=TOPIC))
    with pytest.raises(NotFoundError):
        registry.topic(DEAD)


def test_ids_grow_and_publish_times_never_go_back(registry):
    subscribe(registry)
    message_ids = publish(registry, "a", "b", now=100.5) + publish(registry, "c", now=99.0)
    assert [int(message_id) for message_id in message_ids] == sorted({int(message_id) for message_id in message_ids})
    times = [message.publish_time.ToNanoseconds() for _, message in take(registry, 101.0)]
    assert times == [100_500_000_000] * 3


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(PubsubMessage(), id="empty"),
        pytest.param(PubsubMessage(data=b"x", attributes={str(n): "" for n in range(101)}), id="101 attributes"),
        pytest.param(PubsubMessage(data=b"x", attributes={"é" * 129: ""}), id="258 bytes of key"),
        pytest.param(PubsubMessage(data=b"x", attributes={"": "v"}), id="no key"),
        pytest.param(PubsubMessage(data=b"x", attributes={"k": "é" * 513}), id="1026 bytes of value"),
        pytest.param(PubsubMessage(data=b"x", attributes={"google": "v"}), id="the service's own key"),
        pytest.param(PubsubMessage(data=b"x", ordering_key="k" * 1025), id="1025 bytes of ordering key"),
        pytest.param(PubsubMessage(data=b"x" * 10_000_001), id="10 MB"),
    ],
)
def test_a_request_with_a_bad_message_publishes_nothing(registry, message):
    subscribe(registry)
    fine = PubsubMessage(data=b"fine", ordering_key=message.ordering_key)
    with pytest.raises(InvalidArgumentError):
        registry.publish(PublishRequest(topic=TOPIC, messages=[fine, message]), 0.0)
    assert not take(registry, 0.0)


def test_a_request_carries_one_ordering_key(registry):
    messages = [PubsubMessage(data=b"x", ordering_key=key) for key in "ab"]
    with pytest.raises(InvalidArgumentError, match="same ordering key"):
        registry.publish(PublishRequest(topic=TOPIC, messages=messages), 0.0)


def test_a_request_holds_at_most_1000_messages(registry):
    publish(registry, *["x"] * 1000)
    for count in (0, 1001):
        with pytest.raises(InvalidArgumentError):
            publish(registry, *["x"] * count)


def test_the_largest_allowed_message_passes(registry):
    subscribe(registry)
    attributes = {f"{n:03}" + "k" * 253: "v" * 1024 for n in range(100)}
    registry.publish(
        PublishRequest(
            topic=TOPIC, messages=[PubsubMessage(data=b"x", ordering_key="k" * 1024, attributes=attributes)]
        ),
        0.0,
    )
    assert take(registry, 0.0)[0][1].attributes == attributes


def test_a_filter_drops_what_does_not_match(registry):
    subscribe(registry, filter='hasPrefix(attributes.slot, "01")')
    publish(registry, "yes", attributes={"slot": "0110"})
    publish(registry, "no", attributes={"slot": "10"})
    publish(registry, "neither")
    assert bodies(take(registry, 0.0)) == ["yes"]
    assert len(registry.subscription(SUB).core.entries) == 1


def test_defaults_are_shown(registry):
    shown = subscribe(registry)
    assert shown.ack_deadline_seconds == 10
    assert shown.message_retention_duration.seconds == 604_800
    assert shown.expiration_policy.ttl.seconds == 2_678_400
    assert shown.state == shown.ACTIVE


@pytest.mark.parametrize(
    "options",
    [
        {"ack_deadline_seconds": 9},
        {"ack_deadline_seconds": 601},
        {"message_retention_duration": {"seconds": 599}},
        {"message_retention_duration": {"seconds": 31 * 86_400 + 1}},
        {"expiration_policy": {"ttl": {"seconds": 86_399}}},
        {"retry_policy": {"minimum_backoff": {"seconds": 20}, "maximum_backoff": {"seconds": 10}}},
        {"retry_policy": {"maximum_backoff": {"seconds": 601}}},
        {"dead_letter_policy": {"dead_letter_topic": TOPIC, "max_delivery_attempts": 4}},
        {"dead_letter_policy": {"dead_letter_topic": TOPIC, "max_delivery_attempts": 101}},
        {"filter": "attributes"},
        {"filter": "attributes:" + "x" * 246},
        {"enable_exactly_once_delivery": True, "push_config": {"push_endpoint": "https://example.com"}},
        *(
            {"labels": label}
            for label in ({"Team": "a"}, {"1": "a"}, {"": "a"}, {"a": "A"}, {"a": "x" * 64}, {"a b": ""})
        ),
    ],
    ids=str,
)
def test_subscriptions_out_of_range_are_refused(registry, options):
    with pytest.raises(InvalidArgumentError):
        subscribe(registry, **options)
    assert SUB not in registry.subscriptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bigquery_config", {"table": "p.d.t"}),
        ("bigtable_config", {"table": "projects/p/instances/i/tables/t"}),
        ("cloud_storage_config", {"bucket": "b"}),
        ("message_transforms", [{"disabled": True}]),
        ("tags", {"a": "b"}),
        ("push_config", {"push_endpoint": "https://e.com", "attributes": {"x-goog-version": "v1beta1"}}),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(registry, field, value):
    with pytest.raises(UnimplementedError, match="x-goog-version=v1beta1" if field == "push_config" else field):
        subscribe(registry, **{field: value})
    shown = subscribe(registry)
    changed = Subscription(name=SUB, **{field: value})
    with pytest.raises((UnimplementedError, InvalidArgumentError), match="x-goog" if field == "push_config" else field):
        registry.update_subscription(changed, FieldMask(paths=[field]))
    assert registry.subscription(SUB).config == shown


def test_a_snapshot_without_a_name_gets_one(registry):
    subscribe(registry)
    names = {registry.create_snapshot(of("Snapshot")(), SUB, 0.0).name for _ in range(2)}
    assert names == set(registry.snapshots)
    assert all(name.startswith("projects/p/snapshots/s") for name in names)


def test_an_ack_id_belongs_to_one_subscription(registry):
    subscribe(registry)
    other = subscribe(registry, "projects/p/subscriptions/other").name
    publish(registry, "x")
    [(ack_id, _)] = take(registry, 0.0)
    assert 160 <= len(ack_id) <= 180
    registry.subscription(SUB).core.check([ack_id])
    with pytest.raises(InvalidArgumentError, match="does not belong"):
        registry.subscription(other).core.check([ack_id])


def test_a_dead_letter_topic_must_exist(registry):
    with pytest.raises(NotFoundError):
        subscribe(registry, dead_letter_policy={"dead_letter_topic": DEAD})


@pytest.mark.parametrize(
    "path", ["filter", "enable_message_ordering", "topic", "name", "detached", "state", "nonsense"]
)
def test_what_is_immutable_stays(registry, path):
    subscribe(registry)
    with pytest.raises(InvalidArgumentError, match=path):
        registry.update_subscription(Subscription(name=SUB, filter="attributes:a"), FieldMask(paths=[path]))


def test_updates_change_the_masked_fields_only(registry):
    subscribe(registry, labels={"a": "1", "b": "2"}, retry_policy={})
    update = Subscription(name=SUB, ack_deadline_seconds=60, labels={"c": "3"}, retain_acked_messages=True)
    shown = registry.update_subscription(update, FieldMask(paths=["ack_deadline_seconds", "labels", "retry_policy"]))
    assert (shown.ack_deadline_seconds, dict(shown.labels), shown.retain_acked_messages) == (60, {"c": "3"}, False)
    assert not shown.HasField("retry_policy")
    core = registry.subscription(SUB).core.settings
    assert (core.ack_deadline_seconds, core.backoff) == (60, None)


def test_a_refused_update_changes_nothing(registry):
    subscribe(registry)
    for mask in ([], ["ack_deadline_seconds"]):
        with pytest.raises(InvalidArgumentError):
            registry.update_subscription(Subscription(name=SUB, ack_deadline_seconds=5), FieldMask(paths=mask))
    assert registry.subscription(SUB).config.ack_deadline_seconds == 10


def test_a_deleted_topic_leaves_its_subscriptions_and_their_backlog(registry):
    subscribe(registry)
    publish(registry, "kept")
    registry.delete_topic(TOPIC)
    assert registry.subscription(SUB).config.topic == "_deleted-topic_"
    registry.create_topic(Topic(name=TOPIC))
    publish(registry, "not for it")
    assert bodies(take(registry, 0.0)) == ["kept"]
    registry.update_subscription(
        Subscription(name=SUB, ack_deadline_seconds=20), FieldMask(paths=["ack_deadline_seconds"])
    )


def test_a_detached_subscription_gives_nothing_more(registry):
    subscribe(registry)
    publish(registry, "lost")
    registry.detach_subscription(SUB)
    assert registry.subscription(SUB).config.detached
    assert SUB not in registry.topic(TOPIC).subscriptions
    with pytest.raises(FailedPreconditionError):
        registry.pullable(SUB)


def test_dead_letters_carry_where_they_come_from(registry):
    registry.create_topic(Topic(name=DEAD))
    dead_sub = "projects/p/subscriptions/dead"
    registry.create_subscription(Subscription(name=dead_sub, topic=DEAD))
    subscribe(registry, dead_letter_policy={"dead_letter_topic": DEAD, "max_delivery_attempts": 5})
    [first] = publish(registry, "bad", now=50.25, attributes={"slot": "01"}, ordering_key="01")
    for _ in range(5):
        registry.subscription(SUB).core.modify([take(registry, 60.0)[0][0]], 0, 60.0)
    assert not take(registry, 60.0)
    [(_, letter)] = take(registry, 60.0, dead_sub)
    assert letter.message_id != first
    assert (letter.data, letter.ordering_key, letter.publish_time.seconds) == (b"bad", "01", 60)
    source = "CloudPubSubDeadLetterSource"
    assert dict(letter.attributes) == {
        "slot": "01",
        source + "Subscription": "shard",
        source + "SubscriptionProject": "p",
        source + "DeliveryCount": "5",
        source + "TopicPublishTime": "1970-01-01T00:00:50.250Z",
    }


@pytest.mark.parametrize("keeper", ["subscription", "topic"])
def test_seek_to_the_past_replays_acked_messages_where_they_are_kept(registry, keeper):
    if keeper == "topic":
        update = Topic(name=TOPIC, message_retention_duration={"seconds": 600})
        registry.update_topic(update, FieldMask(paths=["message_retention_duration"]))
    subscribe(registry, retain_acked_messages=keeper == "subscription", filter="attributes:a")
    for now, body in ((1.0, "old"), (2.0, "new")):
        publish(registry, body, now=now, attributes={"a": ""})
        publish(registry, "filtered out", now=now)
    ack(registry, take(registry, 3.0), 3.0)
    registry.seek_to_time(SUB, 2.0, 4.0)
    assert bodies(take(registry, 4.0)) == ["new"]
    registry.seek_to_time(SUB, 0.0, 5.0)
    assert bodies(take(registry, 5.0)) == ["old", "new"]


def test_seek_to_the_past_has_nothing_to_replay_where_nothing_is_kept(registry):
    subscribe(registry)
    publish(registry, "gone")
    ack(registry, take(registry, 1.0), 1.0)
    registry.seek_to_time(SUB, 0.0, 2.0)
    assert not take(registry, 2.0)


def test_seek_to_the_future_purges(registry):
    subscribe(registry)
    publish(registry, "a", "b")
    taken = take(registry, 1.0)
    registry.seek_to_time(SUB, 1e9, 2.0)
    assert not registry.subscription(SUB).core.entries
    assert ack(registry, taken, 2.0)


def test_a_snapshot_restores_what_was_unacked_and_what_came_after(registry):
    subscribe(registry)
    publish(registry, "acked", "unacked")
    taken = take(registry, 1.0)
    ack(registry, taken[:1], 1.0)
    registry.create_snapshot(of("Snapshot")(name=SNAPSHOT), SUB, 1.0)
    publish(registry, "later", now=2.0)
    ack(registry, [*taken[1:], *take(registry, 2.0)], 2.0)
    assert not registry.subscription(SUB).core.entries
    registry.trim(3.0)
    registry.seek_to_snapshot(SUB, SNAPSHOT, 3.0)
    assert bodies(take(registry, 3.0)) == ["unacked", "later"]


def test_a_snapshot_of_another_subscription_brings_only_what_the_filter_lets_through(registry):
    subscribe(registry)
    filtered = "projects/p/subscriptions/filtered"
    subscribe(registry, filtered, filter='attributes.shard = "s1"')
    for now, text in enumerate(("before", "after")):
        publish(registry, text, now=now, attributes={"shard": "s1"})
        publish(registry, f"{text}, another's", now=now, attributes={"shard": "s2"})
        if SNAPSHOT not in registry.snapshots:
            registry.create_snapshot(of("Snapshot")(name=SNAPSHOT), SUB, 0.5)
    registry.seek_to_snapshot(filtered, SNAPSHOT, 2.0)
    assert bodies(take(registry, 2.0, filtered)) == ["before", "after"]


def test_snapshots_expire_and_let_the_log_go(registry):
    subscribe(registry)
    registry.create_snapshot(of("Snapshot")(name=SNAPSHOT), SUB, 0.0)
    publish(registry, "x", now=1.0)
    assert len(registry.topic(TOPIC).log) == 1
    registry.trim(7 * 86_400.0 + 1)
    assert not registry.topic(TOPIC).log
    with pytest.raises(NotFoundError):
        registry.snapshot(SNAPSHOT)


def test_a_snapshot_is_for_subscriptions_of_its_topic(registry):
    subscribe(registry)
    registry.create_topic(Topic(name=DEAD))
    other = "projects/p/subscriptions/other"
    registry.create_subscription(Subscription(name=other, topic=DEAD))
    registry.create_snapshot(of("Snapshot")(name=SNAPSHOT), SUB, 0.0)
    with pytest.raises(FailedPreconditionError):
        registry.seek_to_snapshot(other, SNAPSHOT, 0.0)


def test_nothing_is_kept_once_everybody_has_acked(registry):
    subscribe(registry)
    publish(registry, *"abc", ordering_key="k")
    ack(registry, take(registry, 0.0), 0.0)
    assert not registry.topic(TOPIC).log
    assert registry.stats(0.0)["subscriptions"][SUB]["undelivered"] == 0


def test_stats(registry):
    subscribe(registry)
    publish(registry, *"abc", now=10.0)
    ack(registry, take(registry, 12.0)[:1], 12.0)
    stats = registry.stats(15.0)["subscriptions"][SUB]
    assert (stats["undelivered"], stats["outstanding"], stats["oldest_unacked_age_seconds"]) == (2, 2, 5.0)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 70_000])
@pytest.mark.parametrize("attempt", [0, 1, 300])
@pytest.mark.parametrize("ack_id", ["1-1", "x" * 176])
def test_the_hand_written_wire_is_what_the_generated_classes_read(registry, size, attempt, ack_id):
    subscribe(registry)
    publish(registry, "x" * size, attributes={"a": "b"})
    [message] = registry.subscription(SUB).core.unacked()
    for name in ("PullResponse", "StreamingPullResponse"):
        [received] = of(name).FromString(encode([(ack_id, message, attempt)])).received_messages
        assert (received.ack_id, received.delivery_attempt) == (ack_id, attempt)
        assert received.message == PubsubMessage.FromString(message.body())
        assert len(received.message.data) == size

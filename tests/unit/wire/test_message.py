"""A write's attributes, and what can't be a write."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import orjson
import pytest
from fleets import fleet

from shardctl.fleet.keyspace import digits_of, slot_of, slot_of_time
from shardctl.fleet.settings.messagetypes import TimeBucket
from shardctl.fleet.settings.routing import ATTRIBUTE_PRESETS, Attributes
from shardctl.wire.message import InvalidWriteError, Write, encode

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
FLEET = fleet(["0-1023"])


def _with_columns(**columns):
    kind = FLEET.message_types["a"]
    return kind.model_copy(update={"columns": {**kind.columns, **columns}})


KINDS = {
    "counted": _with_columns(id="bigint"),
    "priced": _with_columns(id="decimal"),
    "updated": _with_columns(n="integer", owner="text").model_copy(update={"key": ("n",), "routing_key": "owner"}),
}
FLEET = FLEET.model_copy(update={"message_types": {**FLEET.message_types, **KINDS}})


def _by_day(kind):
    return kind.model_copy(update={"time_bucket": TimeBucket(field="at", unit="day")})


BY_SECONDS = FLEET.model_copy(update={"message_types": {"a": _by_day(_with_columns(at="number"))}})
BY_DAY = FLEET.model_copy(update={"message_types": {"a": _by_day(FLEET.message_types["a"])}})


def test_a_write_becomes_attributes_and_json():
    encoded = encode(FLEET, Write("a", {"id": "k1", "amount": 5}, idempotency_key="i"), NOW)
    slot = slot_of("k1", 10)
    assert (encoded.slot, encoded.ordering_key) == (slot, digits_of(slot, 10))
    assert orjson.loads(encoded.data) == {"id": "k1", "amount": 5}
    assert encoded.attributes == {
        "slot": digits_of(slot, 10),
        "partition_key": "k1",
        "message_type": "a",
        "operation": "upsert",
        "timestamp": "2026-05-04T03:02:01Z",
        "idempotency_key": "i",
    }


def test_attributes_can_be_renamed():
    routing = FLEET.routing.model_copy(update={"attributes": Attributes(**ATTRIBUTE_PRESETS["cloudevents"])})
    encoded = encode(FLEET.model_copy(update={"routing": routing}), Write("a", {"id": "k"}), NOW)
    assert encoded.attributes["ce-type"] == "a"
    assert encoded.attributes["slot"] == encoded.ordering_key


@pytest.mark.parametrize(
    ("write", "key"),
    [
        (Write("counted", {"id": 7}), "7"),
        (Write("counted", {"id": 1 << 62}, key="4611686018427387904"), "4611686018427387904"),
        (Write("priced", {"id": 10**25}), "1" + "0" * 25),
        (Write("priced", {"id": Decimal("1.5")}, key="1.5"), "1.5"),
        (Write("a", {"id": UUID(int=5)}), "00000000-0000-0000-0000-000000000005"),
        (Write("updated", {"n": 1}, key="k", operation="update"), "k"),
        (Write("a", {"id": "x"}, key="x"), "x"),
        (Write("a", {"id": "é" * 255}), "é" * 255),
    ],
    ids=["number", "long number", "very long number", "decimal", "UUID", "not in the body", "given", "longest"],
)
def test_the_routing_key(write, key):
    assert encode(FLEET, write, NOW).attributes["partition_key"] == key


def test_times_are_shown_in_utc():
    tokyo = datetime(2026, 1, 1, 8, tzinfo=timezone(timedelta(hours=9)))
    assert (
        encode(FLEET, Write("a", {"id": "k"}, timestamp=tokyo), NOW).attributes["timestamp"] == "2025-12-31T23:00:00Z"
    )


@pytest.mark.parametrize(
    "at", ["2026-05-04T00:00:00Z", "2026-05-04T01:00:00", NOW.replace(hour=0), NOW.date()], ids=str
)
def test_a_time_bucket_gives_the_slot(at):
    assert encode(BY_DAY, Write("a", {"id": "k", "at": at}), NOW).slot == slot_of_time(NOW, "day", 10)


@pytest.mark.parametrize("at", [1777852800, 1777852800.5], ids=str)
def test_a_time_bucket_may_be_in_seconds(at):
    assert encode(BY_SECONDS, Write("a", {"id": "k", "at": at}), NOW).slot == slot_of_time(NOW, "day", 10)


@pytest.mark.parametrize(
    "at",
    [None, "soon", True, [], float("nan"), float("inf"), 1e300, "0001-01-01T00:00:00+05:00"],
    ids=str,
)
@pytest.mark.parametrize("type_of_at", ["timestamp", "number"])
def test_a_time_bucket_wants_a_time(at, type_of_at):
    with pytest.raises(InvalidWriteError, match=r"^at: |^'at' must be"):
        encode(BY_DAY if type_of_at == "timestamp" else BY_SECONDS, Write("a", {"id": "k", "at": at}), NOW)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(Write("zz", {"id": "k"}), "isn't among message_types: a, b", id="type"),
        pytest.param(Write("a", {}), "gives no routing key", id="no-key"),
        pytest.param(Write("a", {"id": None}), "gives no routing key", id="null-key"),
        pytest.param(Write("a", {"id": True}), "gives no routing key", id="bool-key"),
        pytest.param(Write("a", {"id": 1.5}), "gives no routing key", id="float-key"),
        pytest.param(Write("a", {"id": ""}), "1 to 255 characters, and has 0", id="empty-key"),
        pytest.param(Write("a", {"id": "x" * 256}), "1 to 255 characters", id="long-key"),
        pytest.param(Write("a", {"id": "a\nb"}), "control character", id="newline"),
        pytest.param(Write("a", {"id": "a\x00b"}), "control character", id="nul"),
        pytest.param(Write("a", {"id": "\ud800"}), "half a surrogate pair", id="surrogate"),
        pytest.param(Write("a", {"id": "k"}, idempotency_key=""), "the idempotency key must have", id="idempotency"),
        pytest.param(Write("a", {"amount": 1}, key="k"), "lacks the key column 'id'", id="no-key-column"),
        pytest.param(Write("a", {"id": "k", "zz": 1}), "'zz', which isn't a column", id="column"),
        pytest.param(Write("a", {"id": "k", "amount": 1 << 70}), "a whole number of 64 bits", id="huge-number"),
        pytest.param(Write("a", {"id": "k", "amount": 1 << 9_000}), "larger than any double", id="monstrous-number"),
        pytest.param(Write("a", {"id": "x"}, key="k"), "the routing key is 'k'", id="another-key"),
        pytest.param(Write("counted", {"id": 7}, key="007"), "the routing key is '007'", id="another-spelling"),
        pytest.param(Write("a", {"id": "k", "amount": object()}), "isn't JSON", id="object"),
        pytest.param(Write("a", {"id": "k", "at": "x" * (10 * 1024**2)}), "bytes, and", id="large"),
        pytest.param(Write("a", {"id": "k"}, operation="merge"), "isn't one of insert, upsert", id="operation"),
        pytest.param(Write("a", {"id": "k"}, timestamp=NOW.replace(tzinfo=None)), "no time zone", id="naive"),
    ],
)
def test_what_cant_be_sent_is_refused_with_a_reason(write, says):
    with pytest.raises(InvalidWriteError, match=says):
        encode(FLEET, write, NOW)

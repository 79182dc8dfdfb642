"""A request becomes the message that a producer's library would make of it, or names what is at fault."""

from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest
from gateway_kit import fleet
from google.pubsub_v1 import PublishRequest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.fleet.settings.routing import ATTRIBUTE_PRESETS, Attributes
from shardctl.gateway.encoding import LINE, REQUEST, Encoder
from shardctl.gateway.fields import FieldError
from shardctl.wire.message import Write, encode

NOW = datetime(2026, 5, 4, 3, 2, 1, 5, tzinfo=UTC)
FLEET = fleet()
ENCODER = Encoder(FLEET)
ORDER = {"order_id": "o-1", "amount": 1}
COUNTER = {"id": 7, "day": 1, "revision": 2}


def encoded(kind, body, places=REQUEST, encoder=ENCODER, **fields):
    data = orjson.dumps(body)
    message = encoder.encode(encoder.kinds[kind], body, data, NOW, fields, places)
    read = PublishRequest.pb().FromString(message.wire).messages[0]
    return message.slot, read.ordering_key, bytes(read.data), dict(read.attributes)


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=255)


@given(
    KEYS,
    st.booleans(),
    st.sampled_from([None, "insert", "upsert", "update", "delete"]),
    KEYS,
    st.none() | st.datetimes(timezones=st.just(UTC)),
)
def test_a_write_travels_as_the_library_sends_it(order_id, names_key, operation, idempotency_key, timestamp):
    order_id = order_id.rstrip(" ") or "k"  # MariaDB couldn't distinguish two keys that differ in those alone
    key = order_id if names_key else None
    body = {"order_id": order_id, "lines": [{"sku": 1.5}]}
    wanted = encode(FLEET, Write("order", body, key, operation, idempotency_key, timestamp), NOW)
    fields = {"key": key, "operation": operation, "idempotency_key": idempotency_key}
    encoding = encoded("order", body, **fields, timestamp=timestamp and timestamp.isoformat())
    assert encoding == (wanted.slot, wanted.ordering_key, wanted.data, wanted.attributes)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("counter", COUNTER),
        ("daily", {"id": "d", "at": "2026-05-04T00:00:00Z"}),
        ("stock/level", {"sku": 5, "any": []}),
    ],
    ids=["number as key", "time bucket", "a sink's own"],
)
def test_types_of_every_kind_travel_so(kind, body):
    wanted = encode(FLEET, Write(kind, body, idempotency_key="i"), NOW)
    encoding = encoded(kind, body, idempotency_key="i")
    assert encoding == (wanted.slot, wanted.ordering_key, wanted.data, wanted.attributes)


def test_renamed_attributes_are_used():
    attributes = Attributes(**ATTRIBUTE_PRESETS["cloudevents"])
    renamed = FLEET.model_copy(update={"routing": FLEET.routing.model_copy(update={"attributes": attributes})})
    wanted = encode(renamed, Write("order", ORDER, idempotency_key="i"), NOW)
    assert encoded("order", ORDER, encoder=Encoder(renamed), idempotency_key="i")[3] == wanted.attributes


def test_a_write_without_an_idempotency_key_gets_one_of_its_own():
    first, second = (encoded("order", ORDER)[3]["idempotency_key"] for _ in range(2))
    assert first != second
    assert first < second
    assert {UUID(first).version, UUID(second).version} == {7}


FAULTS = [
    ("order", {**ORDER, "nope": 1}, {}, "#/nope"),
    ("order", {**ORDER, "amount": "much"}, {}, "#/amount"),
    ("order", {**ORDER, "status": 5}, {}, "#/status"),
    ("order", {**ORDER, "status": "\x00"}, {}, "#/status"),
    ("order", {**ORDER, "placed_at": "soon"}, {}, "#/placed_at"),
    ("order", {"amount": 1}, {}, "#/order_id"),
    ("order", {**ORDER, "order_id": None}, {}, "#/order_id"),
    ("order", {"order_id": ""}, {}, "#/order_id"),
    ("order", {"order_id": "x" * 256}, {}, "#/order_id"),
    ("order", {"order_id": "a\n"}, {}, "#/order_id"),
    ("order", ORDER, {"key": ""}, "key"),
    ("order", ORDER, {"key": "a\x1f"}, "key"),
    ("order", ORDER, {"operation": "merge"}, "operation"),
    ("order", ORDER, {"operation": ""}, "operation"),
    ("order", {"order_id": "a\n"}, {"key": "k"}, "#/order_id"),
    ("order", ORDER, {"key": "o-2"}, "#/order_id"),
    ("order", {"order_id": "k "}, {}, "#/order_id"),
    ("order", {**ORDER, "amount": "1e999999"}, {}, "#/amount"),
    ("order", {**ORDER, "lines": ["\x00"]}, {}, "#/lines"),
    ("counter", COUNTER, {"key": "007"}, "#/id"),
    ("stock/level", {"sku": 5}, {"key": "6"}, "#/sku"),
    ("order", ORDER, {"timestamp": "soon"}, "timestamp"),
    ("order", ORDER, {"timestamp": "2026-05-04T00:00:00"}, "timestamp"),
    ("order", ORDER, {"timestamp": "0001-01-01T00:00:00+05:00"}, "timestamp"),
    ("order", ORDER, {"idempotency_key": ""}, "Idempotency-Key"),
    ("order", ORDER, {"idempotency_key": "k" * 256}, "Idempotency-Key"),
    ("counter", {**COUNTER, "id": True}, {}, "#/id"),
    ("counter", {**COUNTER, "day": 1 << 31}, {}, "#/day"),
    ("counter", {"id": 1, "day": 1}, {}, "#/revision"),
    ("counter", {**COUNTER, "share": "1"}, {}, "#/share"),
    ("counter", {**COUNTER, "open": 1}, {}, "#/open"),
    ("daily", {"id": "d"}, {}, "#/at"),
    ("stock/level", {"any": 1}, {}, "#/sku"),
    ("stock/level", {"sku": 1.5}, {}, "#/sku"),
]


@pytest.mark.parametrize(
    ("kind", "body", "fields", "where"), FAULTS, ids=[f"{f[0]} {f[3]} {n}" for n, f in enumerate(FAULTS)]
)
def test_the_field_at_fault_is_named(kind, body, fields, where):
    with pytest.raises(FieldError) as caught:
        encoded(kind, body, **fields)
    assert caught.value.where == where
    assert "\n" not in str(caught.value)


def test_a_line_names_its_own_fields():
    with pytest.raises(FieldError) as caught:
        encoded("order", ORDER, LINE, operation="merge")
    assert (caught.value.kind, caught.value.where) == ("pointer", "#/operation")


def test_a_delete_needs_no_version():
    assert encoded("counter", {"id": 1, "day": 1}, operation="delete")[3]["operation"] == "delete"

"""Which messages fit an Avro definition, in both forms, and what a hostile one costs."""

from __future__ import annotations

import io
import json

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardctl.broker.avro import Avro
from shardctl.broker.errors import InvalidArgumentError

TREE = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "count", "type": "int"},
        {"name": "paid", "type": "boolean"},
        {"name": "price", "type": "double"},
        {"name": "note", "type": ["null", "string", {"type": "map", "values": "bytes"}]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "sum", "type": {"type": "fixed", "name": "Sum", "size": 2}},
        {"name": "parts", "type": {"type": "array", "items": "shop.Order"}},
        {"name": "next", "type": ["null", "shop.Order"]},
    ],
}
ORDER = Avro(json.dumps(TREE))
PARSED = fastavro.parse_schema(TREE)
# fastavro writes no JSON of a schema that contains itself.
FLAT_TREE = {**TREE, "fields": [field for field in TREE["fields"] if field["name"] not in {"parts", "next"}]}
FLAT, PARSED_FLAT = Avro(json.dumps(FLAT_TREE)), fastavro.parse_schema(FLAT_TREE)


@st.composite
def orders(draw, depth=1):
    """An order with orders in it."""
    inner = st.deferred(lambda: orders(depth - 1))
    fields = {
        "id": st.integers(-(2**63), 2**63 - 1),
        "count": st.integers(-(2**31), 2**31 - 1),
        "paid": st.booleans(),
        "price": st.floats(allow_nan=False, allow_infinity=False),
        "note": st.none()
        | st.text(max_size=5)
        | st.dictionaries(st.text(min_size=1, max_size=3), st.binary(max_size=3), max_size=2),
        "kind": st.sampled_from("AB"),
        "sum": st.binary(min_size=2, max_size=2),
        "parts": st.lists(inner, max_size=1) if depth else st.just([]),
        "next": st.none() | inner if depth else st.none(),
    }
    return draw(st.fixed_dictionaries(fields))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(order=orders())
def test_what_fastavro_writes_fits_and_no_shorter_message_does(order):
    binary, text = io.BytesIO(), io.StringIO()
    fastavro.schemaless_writer(binary, PARSED, order)
    fastavro.json_writer(text, PARSED_FLAT, [order])
    assert ORDER.fits(binary.getvalue(), json=False)
    assert FLAT.fits(text.getvalue().encode(), json=True)
    assert not ORDER.fits(binary.getvalue()[:-1], json=False)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_judged(data):
    assert ORDER.fits(data, json=False) in {True, False}
    assert ORDER.fits(data, json=True) in {True, False}


@pytest.mark.parametrize(
    ("definition", "data", "fits"),
    [
        ('"int"', b"2147483647", True),
        ('"int"', b"2147483648", False),
        ('"long"', b"2147483648", True),
        ('"int"', b"true", False),
        ('"int"', b"1.5", False),
        ('"double"', b"1", True),
        ('"null"', b"null", True),
        ('"null"', b"false", False),
        ('"string"', b"null", False),
        ('"bytes"', '"\u00ff"'.encode(), True),
        ('"bytes"', '"\u0100"'.encode(), False),
        ('{"type": "fixed", "name": "F", "size": 2}', b'"abc"', False),
        ('{"type": "enum", "name": "E", "symbols": ["A"]}', b'"B"', False),
        ('["null", {"type": "fixed", "name": "F", "size": 1, "namespace": "n"}]', b'{"n.F": "a"}', True),
        ('["null", "string"]', b'{"int": 1}', False),
        ('["null", "string"]', b"{}", False),
        ('"string"', b'"a', False),
    ],
)
def test_json_is_judged_by_its_values(definition, data, fits):
    assert Avro(definition).fits(data, json=True) is fits


@pytest.mark.parametrize(
    ("definition", "data"),
    [
        ('"boolean"', b"\x02"),
        ('"int"', b"\xfe\xff\xff\xff\xff\x0f"),
        ('"long"', b"\xff" * 11),
        ('"string"', b"\x01"),
        ('"string"', b"\x02\xff"),
        ('["null"]', b"\x02"),
        ('{"type": "fixed", "name": "F", "size": 99999999999999}', b"a"),
        ('{"type": "array", "items": "null"}', b"\xfe\xff\xff\xff\xff\xff\x01\x00"),
        ('{"type": "array", "items": "null"}', b"\xfd\xff\xff\xff\xff\xff\x01\x00\x00"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "R"}]}', b""),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", "R"]}]}', b"\x02" * 100_000),
    ],
)
def test_binary_that_is_no_value_is_refused_at_once(definition, data):
    assert not Avro(definition).fits(data, json=False)


@pytest.mark.parametrize(
    "definition", ["[" * 2000 + "]" * 2000, '{"type":"array","items":' * 1000 + '"int"' + "}" * 1000]
)
def test_a_deep_definition_is_refused(definition):
    with pytest.raises(InvalidArgumentError, match="Invalid Avro definition"):
        Avro(definition)

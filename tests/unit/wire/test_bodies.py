"""One rule for every way in: a body travels as it came, or is refused for the same reason by all of them and the consumer."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from types import SimpleNamespace
from uuid import UUID

import orjson
import pytest
from bodies_kit import CASES, TYPE, fleet
from google.pubsub_v1 import PublishRequest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer.delivery import Delivery
from consumer.errors import PermanentError
from consumer.sinks import values
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.gateway.encoding import LINE, Encoder
from shardctl.gateway.fields import FieldError
from shardctl.wire.bodies import BodyError, Rules, check_spelling
from shardctl.wire.jsonlines import LineError, body_text, fields_of, write_of
from shardctl.wire.jsontext import MAX_DEPTH, JsonBody, JsonError, exact, written
from shardctl.wire.message import InvalidWriteError, Write, encode
from shardctl.wire.values import LIMITS, strictest

NOW = datetime(2026, 5, 4, tzinfo=UTC)
KEYED = """
fleet: shop
project: test-project
image: example.com/shardctl:1.0.0
message_types:
  everything: {table: everything, key: id, columns: COLUMNS}
shards: [{name: s0, slots: 0-1023}]
"""
FLEETS = {names: fleet(*names) for names in {case.databases for case in CASES.values()}}
ENCODERS = {names: Encoder(fleet) for names, fleet in FLEETS.items()}
REFUSALS = (FieldError, JsonError, LineError, InvalidWriteError, PermanentError)
RULES = {name: Rules(fleet(name).message_types[TYPE], limits) for name, limits in LIMITS.items()}


def through_the_gateway(case, body):
    try:
        read = JsonBody(body)
    except JsonError as error:
        raise FieldError.of_body(error) from None
    return _published(
        ENCODERS[case.databases].encode(ENCODERS[case.databases].kinds[TYPE], read.data, read.text, NOW, {})
    )


def as_a_line_of_the_gateway(case, body):
    line = b'{"type":"everything","body":%b}' % body
    fields, encoder = fields_of(line), ENCODERS[case.databases]
    text = body_text(line, fields)
    return _published(encoder.encode(encoder.kinds[TYPE], fields["body"], text, NOW, fields, LINE))


def by_shardctl_publish(case, body):
    return encode(FLEETS[case.databases], write_of(b'{"type": "everything", "body": %b}' % body), NOW).data


def by_the_publisher(case, body):
    """From Python's own values, with Decimal for what isn't a whole number."""
    if not case.python:
        pytest.skip("Python's values can't say it")
    read = json.loads(body, parse_float=Decimal)
    return encode(FLEETS[case.databases], Write(TYPE, read), NOW).data


def by_the_publisher_as_text(case, body):
    return encode(FLEETS[case.databases], Write(TYPE, JsonBody(body)), NOW).data


def _published(message):
    return bytes(PublishRequest.pb().FromString(message.wire).messages[0].data)


WAYS = [through_the_gateway, as_a_line_of_the_gateway, by_shardctl_publish, by_the_publisher, by_the_publisher_as_text]
TAKEN = {name: case for name, case in CASES.items() if case.refused is None}
REFUSED = {name: case for name, case in CASES.items() if case.refused is not None}


def arrived(body, key="k"):
    message = SimpleNamespace(data=body, attributes={})
    return Delivery("", "", message, "m", 0, len(body), partition_key=key, message_type=TYPE)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", TAKEN)
def test_a_body_travels_as_it_came(name, way):
    case = CASES[name]
    assert way(case, case.body.encode()) == case.body.encode()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_could_not_land_is_refused_at_every_entry(name, way):
    case = CASES[name]
    with pytest.raises(REFUSALS) as refused:
        way(case, case.body.encode())
    if case.where and way is through_the_gateway:
        assert refused.value.where == f"#/{case.where}"
    if case.where:
        assert repr(case.where) in str(refused.value)


@pytest.mark.parametrize("name", CASES)
def test_the_consumer_says_the_same(name):
    case = CASES[name]
    for database in case.databases:
        fault = fault_of(arrived(case.body.encode(), "k " if "k " in case.body else "k"), database)
        assert fault == (None if case.at_entry else case.refused)


def fault_of(delivery, database):
    """The reason why a consumer of that database refuses it; None where it doesn't."""
    try:
        values.read(delivery, RULES[database])
    except PermanentError as fault:
        return fault.reason
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_database_of_the_fleet_minds_is_taken(name):
    """The limits are those of the databases that the fleet names, and no more."""
    case = CASES[name]
    others = [database for database in ("postgresql", "mariadb", "sqlite") if database not in case.databases]
    for database in others:
        data = encode(fleet(database), write_of(b'{"type":"everything","body":%b}' % case.body.encode()), NOW).data
        values.read(arrived(data, orjson.loads(data)["id"]), RULES[database])


def test_a_body_with_blanks_keeps_its_text():
    text = b' {"id": "k", "exact": 1.10, "doc": {"b": 1e2}}\r\n'
    assert through_the_gateway(CASES["plain"], text) == text.strip()
    assert by_the_publisher_as_text(CASES["plain"], text) == text.strip()


# --- the routing key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "key", "taken"),
    [
        ('{"id":"x"}', "x", True),
        ('{"id":"y"}', "x", False),
        ('{"id":"X"}', "x", False),
        ('{"id":"\u00e9"}', "e\u0301", False),
    ],
)
def test_the_routing_key_is_the_bodys(body, key, taken):
    case, data = CASES["plain"], body.encode()
    encoder = ENCODERS[case.databases]
    read = JsonBody(data)
    calls = {
        "gateway": lambda: encoder.encode(encoder.kinds[TYPE], read.data, data, NOW, {"key": key}),
        "publisher": lambda: encode(FLEETS[case.databases], Write(TYPE, orjson.loads(data), key), NOW),
        "consumer": lambda: values.read(arrived(data, key), RULES["postgresql"]),
    }
    for call in calls.values():
        if taken:
            call()
        else:
            with pytest.raises(REFUSALS, match="the routing key is"):
                call()


@pytest.mark.parametrize(
    ("column", "body", "taken"),
    [
        *(("numeric(20,0)", body, True) for body in ("7", '"7"', "0", "-7", "18446744073709551615")),
        *(("numeric(20,0)", body, False) for body in ('"07"', '"7.0"', '"+7"', '"7e0"', '"-0"', '"7."')),
        *(("decimal", body, True) for body in ('"0.5"', '"-1.05"', "100")),
        *(("decimal", body, False) for body in ('".5"', '"0.50"', '"-0.0"', '"1E+2"', '"00"')),
        ("number", "9007199254740992", True),
        ("number", "9007199254740993", False),
        *(("varchar(9)", body, True) for body in ('"7"', '"07"', '"7.0"')),
    ],
)
def test_a_number_that_gives_the_routing_key_is_spelt_in_one_way(column, body, taken):
    """Two spellings would be two keys, and so two slots and two rows, for one number."""
    columns = {"id": column, "note": "text"}
    shop = fleet_from(parse(KEYED.replace("COLUMNS", json.dumps(columns)), "test"))
    text = b'{"id":%b}' % body.encode()
    key, encoder = body.strip('"'), Encoder(shop)
    read = JsonBody(text)
    calls = {
        "gateway": lambda: encoder.encode(encoder.kinds[TYPE], read.data, text, NOW, {}),
        "publisher": lambda: encode(shop, Write(TYPE, JsonBody(text)), NOW),
        "consumer": lambda: values.read(arrived(text, key), Rules(shop.message_types[TYPE], LIMITS["postgresql"])),
        "reader": lambda: check_spelling(shop.message_types[TYPE], key),
    }
    for call in calls.values():
        if taken:
            call()
        else:
            with pytest.raises((*REFUSALS, BodyError), match=r"such as 7 or 0\.5"):
                call()


# --- Python's values --------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**64, "18446744073709551616"),
        (-(2**63), "-9223372036854775808"),
        ([2**70, 1], "[1180591620717411303424,1]"),
        (Decimal("1.10"), "1.10"),
        (Decimal("1E+5"), "1E+5"),
        ({"a": Decimal("0.1"), "b": None}, '{"a":0.1,"b":null}'),
        (0.1 + 0.2, "0.30000000000000004"),
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), '"2026-01-02T03:04:05.000678+00:00"'),
        (datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=19, seconds=32))), '"1899-12-31T23:40:28+00:00"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        ((1, (2,)), "[1,[2]]"),
        (Colour.RED, '"red"'),
        ([Level.HIGH, 2**64], "[3,18446744073709551616]"),
        ("null", '"null"'),
    ],
    ids=repr,
)
def test_pythons_values_are_written_exactly(value, text):
    assert written({"v": value}) == f'{{"v":{text}}}'.encode()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "has no nan"),
        ([{"a": float("inf")}], "has no inf"),
        (Decimal("NaN"), "has no NaN"),
        (Decimal("sNaN"), "has no sNaN"),
        ([Decimal("-Infinity")], "has no -Infinity"),
        (10**400, "larger than any double"),
        (b"bytes", "has no bytes"),
        ({1, 2}, "has no set"),
        ({1: "a"}, "must be str"),
        ("\ud800", "surrogate"),
        (SimpleNamespace, "has no type"),
    ],
    ids=repr,
)
def test_what_json_lacks_is_refused(value, says):
    with pytest.raises(JsonError, match=says):
        written({"v": value})


def test_what_is_endless_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(JsonError, match="deep"):
        written({"v": endless})


PYTHON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(allow_nan=False, allow_infinity=False, places=12) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "\u00e9", ""]), inner),
    max_leaves=12,
)  # fmt: skip


@given(PYTHON)
def test_every_value_comes_back_equal(value):
    read = json.loads(written({"v": value}), parse_float=Decimal)["v"]
    assert _same(read, value)


def _same(read, value):
    if isinstance(value, dict):
        return read.keys() == value.keys() and all(_same(read[name], value[name]) for name in value)
    if isinstance(value, list):
        return len(read) == len(value) and all(map(_same, read, value))
    if type(value) is float:
        return float(read) == value
    return read == value


# --- whatever comes ---------------------------------------------------------------------------------------------------

COLUMNS = fleet("postgresql").message_types[TYPE].columns
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,6})?", fullmatch=True)
SCALARS = st.one_of(
    NUMBERS,
    NUMBERS.map(lambda digits: f'"{digits}"'),
    st.sampled_from(
        ["null", "true", "NaN", "-0", "1e400", '"\\u0000"', '"\\ud800"', '"2026-05-04T01:02:03.1234567+02:00"']
    ),
    st.text(max_size=12).map(json.dumps),
    st.integers(0, 1_100).map(lambda levels: "[" * levels + "]" * levels),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: "[" + ", ".join(parts) + "]")
        | st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
        )
    ),
    max_leaves=8,
)
BODIES = st.lists(st.tuples(st.sampled_from([*COLUMNS, "other"]), JSON), max_size=5).map(
    lambda pairs: ('{"id":"k"' + "".join(f', "{name}":{value}' for name, value in pairs) + "}").encode(errors="replace")
)


@given(st.binary(max_size=200) | BODIES, st.sampled_from(sorted(LIMITS)))
@example(b'{"id":"k","exact":1.5,"doc":' + b"[" * 1_018 + b"]" * 1_018 + b"}", "mariadb")
@example(b'{"id":"k","doc":' + b'{"a":' * 1_022 + b"1" + b"}" * 1_022 + b"}", "sqlite")
def test_whatever_comes_is_read_or_can_never_land(body, database):
    delivery = arrived(body)
    if not fault_of(delivery, database):
        assert orjson.dumps(values.plain(delivery, RULES[database]))


@pytest.mark.slow
@given(BODIES, st.sampled_from([("postgresql",), ("mariadb",), ("postgresql", "mariadb"), ("sqlite",)]))
def test_what_a_door_takes_the_consumer_takes(body, databases):
    limits = strictest(databases)
    kind = fleet("postgresql").message_types[TYPE]
    try:
        read = JsonBody(body)
        Rules(kind, limits, at_entry=True).check(read.data, read.text, "upsert")
    except ValueError:
        return
    for database in databases:
        values.read(arrived(read.text), RULES[database])


def test_the_depth_is_less_than_every_readers():
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert orjson.dumps(orjson.loads(deep)) == deep
    assert exact(deep)

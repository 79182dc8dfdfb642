"""What gateway and publishers take is stored as it was written: the table of bodies and whatever hypothesis finds."""

from __future__ import annotations

import json
from decimal import Decimal
from types import SimpleNamespace

import pytest
from bodies_kit import CASES, TYPE, fleet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from products_kit import PRODUCTS, empty_database
from sqlalchemy import text
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError
from consumer.sinks.sql import SqlSink
from shardctl.fleet.settings.consuming import Batching
from shardctl.shard import schema
from shardctl.wire.bodies import Rules
from shardctl.wire.jsontext import JsonBody
from shardctl.wire.values import LIMITS, base64_of, moment_of

pytestmark = pytest.mark.slow
CHOSEN = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Table:
    """The type's table in one database."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.kind = name, fleet(name).message_types[TYPE]
        self.engine = sessions.engine_of(make_url(url), Batching())
        self.dialect = sessions.dialect_of(self.engine.url)
        self.sink = SqlSink(self.dialect, {TYPE: self.kind})
        schema.create(self.engine, {TYPE: self.kind}, schema.SlotSet.of([0]), 1)

    def run(self, statement: str) -> None:
        with sessions.transaction(self.engine, self.dialect) as connection:
            connection.exec_driver_sql(statement)

    def write(self, body: bytes) -> None:
        try:
            key = JsonBody(body).get("id", "k")
        except ValueError:
            key = "k"
        message = SimpleNamespace(data=body, attributes={})
        delivery = Delivery("", "", message, "m", 0, len(body), slot=0, partition_key=key, message_type=TYPE)
        self.sink.check(delivery)
        with sessions.transaction(self.engine, self.dialect) as connection:
            self.sink.apply(connection, [delivery])

    def row(self) -> dict[str, object]:
        """Decimals and JSON as text, which no driver has rounded."""
        as_text = {"postgresql": "CAST({} AS text)", "mariadb": "CONVERT({} USING utf8mb4)", "sqlite": "{}"}[self.name]
        exact = ("decimal", "json")
        quote = self.dialect.quote
        listed = [
            as_text.format(quote(c)) if kind_of_value in exact else quote(c)
            for c, kind_of_value in self.kind.types.items()
        ]
        with self.engine.connect() as connection:
            stored = connection.execute(text(f"SELECT {', '.join(listed)} FROM everything")).one()
        return dict(zip(self.kind.columns, stored, strict=True))


@pytest.fixture(scope="module", params=PRODUCTS)
def table(request):
    with empty_database(request, request.param) as url:
        made = Table(request.param, url)
        yield made
        made.engine.dispose()


def assert_stored(table: Table, body: bytes) -> None:
    """Write the body and read it back: every value is the one that was written, to the last digit."""
    table.run("DELETE FROM everything")
    table.write(body)
    wanted, row = json.loads(body, parse_float=Decimal), table.row()
    for column, kind_of_value in table.kind.types.items():
        value, stored = wanted.get(column), row[column]
        if value is None:
            assert stored is None, column
        elif kind_of_value == "decimal":
            assert Decimal(str(stored)) == Decimal(value), column
        elif kind_of_value == "number":
            assert float(stored) == float(value), column
        elif kind_of_value == "timestamp":
            moment = moment_of(value)
            if isinstance(stored, str):
                stored = moment_of(stored)
            assert (stored if stored.tzinfo else stored.replace(tzinfo=moment.tzinfo)) == moment, column
        elif kind_of_value in {"date", "uuid"}:
            assert str(stored) == value, column
        elif kind_of_value == "bytes":
            assert base64_of(stored) == value, column
        elif kind_of_value == "json":
            assert json.loads(str(stored), parse_float=Decimal) == value, column
        else:
            assert stored == value, column


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.at_entry])
def test_a_body_is_stored_as_it_came_or_refused(table, name):
    case = CASES[name]
    body = case.body.encode()
    if (case.refused and table.name in case.databases) or table.name in case.beyond:
        with pytest.raises(PermanentError) as refused:
            table.write(body)
        assert refused.value.reason == (case.refused or "bad_value")
    else:
        assert_stored(table, body)


DIGITS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,35})?([eE][-+]?[0-9]{1,5})?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    DIGITS
    | TEXTS.map(json.dumps)
    | st.sampled_from(["null", "true"])
    | st.integers(1, 60).map(lambda n: "[" * n + "]" * n),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]")
        | st.dictionaries(TEXTS.map(json.dumps), inner, max_size=3).map(
            lambda value_types: "{" + ",".join(f"{name}: {value}" for name, value in value_types.items()) + "}"
        )
    ),
    max_leaves=6,
)
MOMENTS = st.builds(
    lambda day, clock, fraction, zone: f'"{day.isoformat()}T{clock.isoformat()[:8]}{fraction}{zone}"',
    st.dates(), st.times(),
    st.sampled_from(["", ".5", ".123456", ".1234567", ".9999999"]),
    st.sampled_from(["", "Z", "+00:00", "-15:59", "+14:00", "+16:00"]),
)  # fmt: skip
INTEGERS = st.integers(-(1 << 64), 1 << 64).map(str) | st.integers(-(1 << 31), (1 << 31) - 1).map(str)
COLUMNS = {
    "whole": INTEGERS, "long": INTEGERS, "real": DIGITS | st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    "exact": DIGITS | DIGITS.map(json.dumps), "price": DIGITS | st.decimals(-(10**9), 10**9, places=2).map(str),
    "flag": st.sampled_from(["true", "false"]), "at": MOMENTS, "doc": JSON, "note": TEXTS.map(json.dumps),
    "day": st.dates().map(lambda day: json.dumps(str(day))), "uid": st.uuids().map(lambda uuid: json.dumps(str(uuid))),
    "raw": st.binary(max_size=40).map(lambda data: json.dumps(base64_of(data))) | TEXTS.map(json.dumps),
    "code": TEXTS.map(json.dumps),
}  # fmt: skip
BODIES = st.tuples(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map(json.dumps),
    st.lists(st.sampled_from(sorted(COLUMNS)), unique=True, min_size=1, max_size=3).flatmap(
        lambda names: st.tuples(*(st.tuples(st.just(name), COLUMNS[name]) for name in names))
    ),
).map(lambda body: ('{"id": ' + body[0] + "".join(f', "{name}": {value}' for name, value in body[1]) + "}").encode())


@CHOSEN
@given(BODIES)
def test_what_entry_takes_is_stored_as_it_was_written(table, body):
    try:
        read = JsonBody(body)
        Rules(table.kind, LIMITS[table.name], at_entry=True).check(read.data, read.text, "upsert")
    except ValueError:
        return
    assert_stored(table, read.text)


def test_a_column_that_would_round_refuses_until_it_is_widened(table):
    """A table that was there before, with fewer places than its type takes."""
    if table.name == "sqlite":
        pytest.skip("SQLite's declared types round nothing")
    alter = {
        "postgresql": "ALTER TABLE everything ALTER COLUMN exact TYPE {}",
        "mariadb": "ALTER TABLE everything MODIFY exact {}",
    }[table.name]
    table.run("DELETE FROM everything")
    table.run(alter.format("decimal(38,10)"))
    try:
        table.sink = SqlSink(table.dialect, {TYPE: table.kind})
        assert_stored(table, b'{"id":"k","exact":0.1234567890}')
        with pytest.raises(DataFaultError, match="would round"):
            table.write(b'{"id":"k","exact":0.12345678901}')
        table.run(alter.format("decimal(38,11)"))
        assert_stored(table, b'{"id":"k","exact":0.12345678901}')
    finally:
        table.run(alter.format({"postgresql": "numeric", "mariadb": "decimal(65,30)"}[table.name]))

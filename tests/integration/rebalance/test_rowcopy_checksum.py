"""Which slot a row belongs to: the databases' SQL agrees with what producers compute."""

from __future__ import annotations

import random
import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowcopy_kit import FLEET, KINDS
from rowcopy_places import PRODUCTS, places, sides

from shardctl.fleet.keyspace import SlotRule, slot_of, slot_of_time
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.checksum import expected_slot, prepare
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.shard import database

pytestmark = pytest.mark.slow
__all__ = ["places", "sides"]


@pytest.fixture(params=PRODUCTS)
def product(request):
    return request.param


# --- which slot a row belongs to ------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40) | st.text(
    string.printable.replace("\x00", ""), min_size=1, max_size=20
)
LONG_AGO = datetime(1900, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("bits", [1, 6, 10, 16])
def test_the_databases_hash_keys_as_producers_do(places, product, bits):
    side = places.side(product)

    @settings(max_examples=4, deadline=None)
    @given(st.lists(KEYS, min_size=1, max_size=30, unique=True))
    def check(keys):
        side.clear()
        usable = [key for key in keys if product != "mariadb" or key == key.rstrip(" ")]
        if usable:
            side.put(side.things, *({"id": key, "slot": slot_of(key, bits)} for key in usable))
        assert wrong(side, KINDS["thing"], SlotRule(bits)) == 0

    check()
    side.clear()
    side.put(side.things, {"id": "a", "slot": slot_of("a", bits) ^ 1})
    assert wrong(side, KINDS["thing"], SlotRule(bits)) == 1


@pytest.mark.parametrize("modulo", [3, 4, 7])
@pytest.mark.parametrize("field", ["id", "a_bigint"])
def test_the_databases_keep_remainders_together_as_producers_do(places, product, modulo, field):
    rule, side = SlotRule(10, modulo), places.side(product)
    kind = KINDS["thing"].model_copy(update={"routing_key": field})
    numbers = [*range(40), 10**17, 10**18 - 1, 2**59, *random.Random(modulo).sample(range(10**18), 100)]
    side.clear()
    side.put(side.things, *({"id": str(n), "a_bigint": n, "slot": rule.slot_of(str(n))} for n in numbers))
    assert wrong(side, kind, rule) == 0
    side.clear()
    side.put(side.things, {"id": "5", "a_bigint": 5, "slot": rule.slot_of("6")})
    assert wrong(side, kind, rule) == 1
    side.clear()
    side.put(side.things, {"id": "x", "a_bigint": -5, "slot": 0}, {"id": "007", "a_bigint": None, "slot": 0})
    assert wrong(side, kind, rule) == 0  # where they belong is unknown


@pytest.mark.parametrize("unit", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("field", ["a_time", "a_bigint"])
def test_the_databases_count_time_buckets_as_producers_do(places, product, unit, field):
    text_of = FLEET.replace("key: id\n", f"key: id\n    time_bucket: {{field: {field}, unit: {unit}}}\n", 1)
    kind = fleet_from(parse(text_of, "test")).message_types["thing"]
    side = places.side(product)
    edges = [datetime(1970, 1, 1, tzinfo=UTC) + n * timedelta(hours=12) + off * timedelta(microseconds=1)
             for n in range(-40, 100) for off in (-1, 0)]  # fmt: skip

    chance, span = random.Random(unit), datetime(2200, 1, 1, tzinfo=UTC) - LONG_AGO
    side.clear()
    rows = []
    for number, moment in enumerate([*(LONG_AGO + chance.random() * span for _ in range(100)), *edges]):
        at = moment if field == "a_time" else moment.replace(microsecond=0)
        value = at if field == "a_time" else int(at.timestamp())
        rows.append({"id": str(number), field: value, "slot": slot_of_time(at, unit, 6)})
    side.put(side.things, *rows)
    assert wrong(side, kind, SlotRule(6)) == 0


def wrong(side, kind, rule):
    with database.snapshot(side.engine) as connection:
        prepare(connection)
        [table] = [slot_table for slot_table in slot_tables(connection, side.kinds) if slot_table.name == "things"]
        slot = expected_slot(side.engine.dialect.name, table, kind, rule)
        return connection.exec_driver_sql(f"SELECT count(*) FROM things WHERE {slot} <> slot").scalar()

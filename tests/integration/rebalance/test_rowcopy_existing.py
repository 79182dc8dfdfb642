"""Rows of tables that were there before, between databases whose own types differ: copied, brought up to date, verified."""

from __future__ import annotations

from contextlib import ExitStack
from uuid import UUID

import pytest
from existing_kit import GOOD, KINDS, SLOT, Existing
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from products_kit import empty_database

from shardctl.fleet.keyspace import SlotRule, SlotSet, slot_of
from shardctl.rebalance.rows.checksum import expected_slot, prepare
from shardctl.rebalance.rows.delta import apply_delta, read_log
from shardctl.rebalance.rows.fitness import unfit
from shardctl.rebalance.rows.rowcopy import copy_slots
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.shard import database, schema
from shardctl.wire.values import base64_of

pytestmark = pytest.mark.slow
ALL = {**GOOD, "at": None}  # SQLite has no date that would keep the day of a time alone
WAYS = [
    ("postgresql", "postgresql"), ("mariadb", "mariadb"), ("postgresql", "mariadb"), ("mariadb", "postgresql"),
    ("sqlite", "postgresql"), ("postgresql", "sqlite"),
]  # fmt: skip
BITS = 6
COLUMNS = ("id", "day", "revision", "name", "code", "state", "price", "photo", "other", "small")
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5).map(lambda text: text.rstrip(" "))
SALES = st.fixed_dictionaries(
    {
        "id": st.sampled_from([f"{number:08x}-0000-4000-8000-00000000000a" for number in range(6)]),
        "day": st.sampled_from(["0001-01-01", "2024-02-29", "9999-12-31"]),
        "name": TEXTS, "code": TEXTS, "state": st.sampled_from(["new", "it's 100%", "1"]),
        "price": st.integers(-9_999_999, 9_999_999).map(lambda number: f"{number}.5"),
        "photo": st.binary(min_size=4, max_size=4).map(base64_of), "other": st.uuids(version=4).map(str),
        "doc": st.dictionaries(TEXTS, st.integers(-9, 9), max_size=2),
    }
)  # fmt: skip


@pytest.fixture(params=WAYS, ids=" to ".join)
def pair(request):
    with ExitStack() as databases:
        urls = [databases.enter_context(empty_database(request, product)) for product in request.param]
        tables = [Existing(product, url) for product, url in zip(request.param, urls, strict=True)]
        engines = [database.connect(url) for url in urls]
        for table, engine in zip(tables, engines, strict=True):
            table.create()
            schema.create(engine, KINDS, SlotSet(), 1)
        yield tables, engines
        for table, engine in zip(tables, engines, strict=True):
            engine.dispose()
            table.engine.dispose()


def test_rows_of_other_types_move_whole_and_follow_later_writes(pair):
    (source, destination), (old_side, new_side) = pair
    assert unfit(old_side, new_side, KINDS) == []
    revision = iter(range(1, 1_000_000))

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.lists(SALES, max_size=12), st.lists(SALES, min_size=1, max_size=12))
    def check(before, after):
        for table in (source, destination):
            table.run("DELETE FROM sales", "DELETE FROM shardctl_changes")
        source.logs = False
        for sale in before:
            source.write(**{**ALL, **sale, "revision": next(revision)})
        with database.writing(new_side) as into, database.snapshot(old_side) as out:
            copy_slots(out, into, KINDS, (SLOT,))
        source.logs = True
        for number, sale in enumerate(after):
            if number % 3 == 2:
                source.write("delete", id=sale["id"], day=sale["day"], revision=...)
            else:
                source.write(**{**ALL, **sale, "revision": next(revision)})
        with database.writing(new_side) as into, database.snapshot(old_side) as out:
            apply_delta(out, into, KINDS, SLOT, read_log(out, SLOT, 0, 10_000))
        assert rows(destination) == rows(source)
        ids = [UUID(row[0]) for row in rows(destination)]
        assert slots_by_key(new_side) == sorted(slot_of(str(key), BITS) for key in ids)

    check()


def slots_by_key(engine):
    """What `shardctl verify` compares with the slot column."""
    with database.snapshot(engine) as connection:
        prepare(connection)
        table = next(table for table in slot_tables(connection, KINDS) if table.name == "sales")
        expected = expected_slot(connection.dialect.name, table, KINDS["sale"], SlotRule(BITS))
        return sorted(connection.exec_driver_sql(f"SELECT {expected} FROM sales").scalars())


def rows(table):
    """As texts, the UUID in one form."""
    listed = [[value.replace("-", "") if name in {"id", "other"} else value for name, value in zip(COLUMNS, row, strict=True)]
              for row in table.rows(*COLUMNS)]  # fmt: skip
    return sorted(listed)

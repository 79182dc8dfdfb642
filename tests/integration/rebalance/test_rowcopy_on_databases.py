"""Slots between PostgreSQL, MariaDB and SQLite, in every direction: no digit, no character is lost, and what is shows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from names_kit import name_of
from rowcopy_kit import KINDS, THING, copy
from rowcopy_places import BOTH, POSTGRES, PRODUCTS, REAL, places, sides
from sqlalchemy import event

from shardctl.rebalance.rows import transfer
from shardctl.rebalance.rows.fitness import doubts, unfit
from shardctl.rebalance.rows.rowcopy import CopyError, CopyMismatchError
from shardctl.shard import schema
from shardctl.shard.database import DatabaseError

pytestmark = pytest.mark.slow
__all__ = ["places", "sides"]

# --- values -----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def things(*, digits):
    """Rows that each of the databases can hold; a decimal with so many digits."""
    decimals = st.integers(-(10**digits) + 1, 10**digits - 1).map(lambda n: Decimal(f"{n}E-10"))
    return st.fixed_dictionaries(
        {
            "an_integer": st.none() | st.integers(-(2**31), 2**31 - 1),
            "a_bigint": st.none() | st.integers(-(2**63), 2**63 - 1),
            "a_number": st.none() | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
            "a_decimal": st.none() | decimals,
            "a_boolean": st.none() | st.booleans(),
            "a_time": st.none() | st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
            "a_json": st.none() | JSON,
            "a_text": st.none() | TEXT,
        }
    )


@pytest.mark.parametrize("sides", [(a, b) for a in PRODUCTS for b in PRODUCTS], ids=" to ".join, indirect=True)
def test_every_value_comes_over_whole(sides):
    source, destination = sides
    digits = 15 if "sqlite" in {side.engine.dialect.name for side in sides} else 38

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(things(digits=digits), max_size=25), st.lists(st.binary(max_size=40), max_size=4), TEXT)
    def check(rows, bodies, key):
        source.clear()
        if rows:
            source.put(source.things, *({**row, "id": f"ä{number}", "slot": 5} for number, row in enumerate(rows)))
        source.record(5, "a", "A", "ä", "a ")
        if bodies and key:
            source.park(5, key, *bodies)
        copied = copy(source, destination)
        assert copied.rows["things"] == len(rows)
        for table in (source.things, schema.parked_keys):
            by_id = table.c.id.name if table is source.things else "partition_key"
            moved, sent = (sorted(side.rows(table), key=lambda row: row[by_id]) for side in (destination, source))
            for row in (*moved, *sent):
                row.pop("parked_time", None)
            assert moved == sent
        assert {name_of(row["identity"]) for row in destination.rows(schema.inbox)} == {"a", "A", "ä", "a "}
        stored = sorted(destination.rows(schema.parked), key=lambda row: row["position"])
        assert [row["body"] for row in stored] == (bodies if key else [])

    check()


@pytest.mark.parametrize("sides", [(a, b) for a in PRODUCTS for b in PRODUCTS], ids=" to ".join, indirect=True)
def test_several_slots_come_over_together_and_no_other(sides):
    source, destination = sides
    for slot in (5, 6, 7, 8):
        source.thing(slot, id=f"a{slot}")
        source.thing(slot, id=f"b{slot}", a_text=f"ü{slot}")
        source.record(slot, f"k{slot}")
        source.park(slot, f"p{slot}", b"1", b"2", b"3")
    destination.thing(6, id="left behind")
    destination.thing(7, id="of a slot that stays")
    copied = copy(source, destination, 8, 5, 6)
    assert copied.rows["things"] == 6
    for slot in (5, 6, 8):
        assert sorted(row["id"] for row in destination.rows(source.things, slot)) == [f"a{slot}", f"b{slot}"]
        assert len(destination.rows(schema.inbox, slot)) == 1
        parked = sorted(destination.rows(schema.parked, slot), key=lambda row: row["position"])
        assert [row["body"] for row in parked] == [b"1", b"2", b"3"]
    assert [row["id"] for row in destination.rows(source.things, 7)] == ["of a slot that stays"]
    destination.run("DELETE FROM things WHERE slot = 6", "UPDATE things SET slot = 6 WHERE slot = 7")
    source.run("DELETE FROM things WHERE slot = 5")
    assert copy(source, destination, 5, 6).rows["things"] == 2, "done again, it replaces what is there"
    assert destination.rows(source.things, 5) == []


@POSTGRES
def test_postgresqls_own_types_come_over(sides):
    source, destination = sides
    for side in sides:
        side.run(
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "ALTER TABLE things ADD u uuid, ADD m mood, ADD a text[], ADD b bytea, ADD i interval, ADD d date, "
            'ADD r int4range, ADD f real, ADD c char(5), ADD "odd %, ""name"", \\:x" text, '
            "ADD g text GENERATED ALWAYS AS (upper(a_text)) STORED, ADD s int GENERATED ALWAYS AS IDENTITY",
        )
    source.thing(id="1", a_number=float("nan"), a_decimal=Decimal("NaN"))
    source.thing(id="2", a_number=float("-inf"), a_decimal=Decimal("1" * 200 + "." + "2" * 200 + "0"))
    source.run(
        "UPDATE things SET u = gen_random_uuid(), m = 'ok', a = '{\"x,\\\"\",NULL,\\\\N}', b = '\\x00ff', i = '1 mon -3 days', "
        "d = 'infinity', r = '[1,5)', f = 0.1, c = 'x', \"odd %, \"\"name\"\", \\:x\" = '\\N'",
        "UPDATE things SET a_time = '-infinity' WHERE id = '1'",
        "UPDATE things SET a_time = '0044-03-15 BC' WHERE id = '2'",
    )
    copy(source, destination)
    query = "SELECT md5(t::text) FROM things t ORDER BY id"
    assert destination.query(query) == source.query(query)


@pytest.mark.parametrize(
    ("sides", "ours", "theirs"),
    [
        (("postgresql", "mariadb"), "u uuid, ADD b bytea, ADD d date", "u char(36), ADD b longblob, ADD d date"),
        (("mariadb", "postgresql"), "u char(36), ADD b longblob, ADD d date", "u uuid, ADD b bytea, ADD d date"),
        (("postgresql", "postgresql"), "u text, ADD b bytea, ADD d date", "u uuid, ADD b bytea, ADD d date"),
    ],
    indirect=["sides"],
)
def test_types_that_only_meet_as_text_come_over(sides, ours, theirs):
    source, destination = sides
    source.run(f"ALTER TABLE things ADD {ours}")
    destination.run(f"ALTER TABLE things ADD {theirs}")
    assert unfit(source.engine, destination.engine, KINDS) == []
    source.thing()
    binary = "'\\x00ff27'" if source.engine.dialect.name == "postgresql" else "x'00ff27'"
    source.run(f"UPDATE things SET u = '6f1c6b0a-0000-4000-8000-00000000000a', b = {binary}, d = '2024-02-29'")
    copy(source, destination)
    [[u, b, d]] = destination.query("SELECT u, b, d FROM things")
    assert (str(u), bytes(b), str(d)) == ("6f1c6b0a-0000-4000-8000-00000000000a", b"\x00\xff'", "2024-02-29")


def test_mariadbs_own_types_come_over(places):
    source, destination = places.side("mariadb"), places.side("mariadb")
    for side in (source, destination):
        side.run(
            "ALTER TABLE things ADD f float, ADD e enum('a', 'b'), ADD s set('x', 'y'), ADD t time(6), ADD d date, ADD y year, "
            "ADD b bit(9), ADD n decimal(65, 30), ADD l longblob, ADD u bigint unsigned, ADD `odd %, x` text, "
            "ADD g text GENERATED ALWAYS AS (upper(a_text)) VIRTUAL"
        )
    source.thing(a_number=-1e-300)
    source.run(
        "UPDATE things SET f = 16777215.5, e = 'b', s = 'x,y', t = '-101:02:03.000004', d = '2024-02-29', y = 1999",
        "UPDATE things SET n = '12345678901234567890123456789012345.000000000000000000000000000001', l = x'00ff27', "
        "b = b'100000001', u = 18446744073709551615, `odd %, x` = '%s'",
    )
    copy(source, destination)
    query = "SELECT f + 0e0, e, s, CAST(t AS CHAR), d, y, hex(b), n, hex(l), u, `odd %, x`, g FROM things"
    assert destination.query(query) == source.query(query)
    assert destination.query(query)[0][1:4] == ("b", "x,y", "-101:02:03.000004")


@pytest.mark.parametrize(
    ("sides", "values", "message"),
    [
        (("postgresql", "mariadb"), {"a_number": float("nan")}, "nan can not be used"),
        (("postgresql", "mariadb"), {"a_decimal": Decimal("1." + "1" * 40)}, "not all as they were|Data truncated"),
        (("postgresql", "sqlite"), {"a_number": float("nan")}, "not all as they were"),
        (("postgresql", "sqlite"), {"a_decimal": Decimal("12345678901234567.89")}, "not all as they were"),
        (("sqlite", "postgresql"), {"a_text": "a\x00b"}, "NUL|0x00|0$"),
        (("mariadb", "postgresql"), {"a_text": "a\x00b"}, "NUL|0x00|0$"),
    ],
    indirect=["sides"],
)
def test_what_the_destination_cannot_hold_is_not_moved(sides, values, message):
    source, destination = sides
    source.thing(**values)
    with pytest.raises((CopyMismatchError, DatabaseError), match=message):
        copy(source, destination)
    assert not destination.rows(destination.things)


def test_text_that_is_no_text_is_reported(places):
    source, destination = places.side("mariadb"), places.side("postgresql")
    source.run("ALTER TABLE things ADD b longblob")
    destination.run("ALTER TABLE things ADD b text")
    source.thing()
    source.run("UPDATE things SET b = x'ff'")
    with pytest.raises(CopyError, match="table things, slot 5: the destination can't hold a value"):
        copy(source, destination)


# --- what goes wrong ----------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.parametrize(
    ("change", "message"),
    [("new.a_text = 'x'", "not all as they were"), ("new.slot = 6", "3 rows were read and 0 are stored")],
)
def test_a_row_that_is_changed_on_the_way_is_found(sides, change, message):
    source, destination = sides
    for number in range(3):
        source.thing(id=str(number))
    if destination.engine.dialect.name == "postgresql":
        destination.run(
            f"CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {change.replace(chr(39), chr(39) * 2)}; "
            "RETURN new; END'".replace("new.", "new.").replace(" = ", " \\:= "),
            "CREATE TRIGGER planted BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION planted()",
        )
    else:
        destination.run(f"CREATE TRIGGER planted BEFORE INSERT ON things FOR EACH ROW SET {change}")
    assert any("table things has a trigger" in doubt for doubt in doubts(source.engine, destination.engine, KINDS))
    with pytest.raises(CopyMismatchError, match=f"table things, slot 5: .*{message}"):
        copy(source, destination)
    assert not destination.rows(destination.things)


@POSTGRES
def test_what_a_deferred_trigger_does_is_found(sides):
    source, destination = sides
    source.thing()
    destination.run(
        "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM things; RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER planted AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION planted()",
    )
    with pytest.raises(CopyMismatchError, match="1 rows were read and 0 are stored"):
        copy(source, destination)


@BOTH
def test_a_slot_of_many_chunks_is_as_it_was(sides, monkeypatch):
    source, destination = sides
    monkeypatch.setattr(transfer, "ROWS_AT_ONCE", 7)
    source.record(5, *(f"k{number}" for number in range(500)))
    source.park(5, "k", *(bytes([number]) * 2_000 for number in range(100)))
    copied = copy(source, destination)
    assert copied.rows["shardctl_inbox"] == 500
    stored = sorted(destination.rows(schema.parked), key=lambda row: row["position"])
    assert [row["body"][0] for row in stored] == list(range(100))


@POSTGRES
def test_between_two_postgresql_rows_travel_as_their_text(sides, monkeypatch):
    monkeypatch.setattr(transfer, "_rows", None)
    sides[0].thing()
    copy(*sides)
    assert len(sides[1].rows(sides[1].things)) == 1


@POSTGRES
def test_sums_make_each_rows_text_once_and_may_be_made_in_parallel(sides):
    source, destination = sides
    source.run("INSERT INTO things (id, slot) SELECT n, 5 FROM generate_series(1, 2000) AS n", "ANALYZE things")
    statements = []
    event.listen(source.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    copy(source, destination)
    (sums,) = (statement for statement in statements if "hashtextextended" in statement)
    things = next(part for part in sums.split(" UNION ALL ") if '"things"' in part)
    with source.engine.connect() as connection:
        for setting in (
            *("parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0"),
            *("enable_indexscan = off", "enable_bitmapscan = off"),
        ):
            connection.exec_driver_sql(f"SET {setting}")
        explained = connection.exec_driver_sql(f"EXPLAIN (VERBOSE, FORMAT JSON) {things}").scalar_one()
    plans = list(nodes(explained[0]["Plan"]))
    (scan,) = (plan for plan in plans if plan.get("Relation Name") == "things")
    assert len(scan["Output"]) == 1  # the text, and no column of which another node would make it
    assert "Partial" in {plan.get("Partial Mode") for plan in plans}


def nodes(plan):
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@POSTGRES
def test_a_wider_column_takes_the_values(sides):
    source, destination = sides
    destination.run("ALTER TABLE things ALTER an_integer TYPE bigint, ALTER a_decimal TYPE numeric(60, 20)")
    source.thing()
    copy(source, destination)
    assert destination.rows(destination.things)[0]["a_decimal"] == THING["a_decimal"]

"""Message types drafted from tables: every type has a place, hostile names do no harm, and what is left out is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import types as sa
from sqlalchemy.dialects import mysql, postgresql

from shardctl.drafting.catalog import ExistingColumn, ExistingTable
from shardctl.drafting.columntypes import choice_of
from shardctl.drafting.draft import DraftError, draft_of
from shardctl.fleet import scaffold
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

TEXT = sa.TEXT()


def column(name, column_type=TEXT, *, nullable=True, default=False, numbered=False, generated=False):
    return ExistingColumn(name, column_type, repr(column_type), nullable, default, numbered, generated)


def table(*columns, name="sales", key=("id",), primary=True, parents=()):
    if not any(listed.name == "id" for listed in columns):
        columns = (column("id", sa.BIGINT(), nullable=False), *columns)
    return ExistingTable(name, columns, key, primary, parents)


def types_of(*tables):
    draft = draft_of(tables)
    return fleet_from(parse(scaffold.text_of_tables(2, draft.text), "drafted")).message_types


@pytest.mark.parametrize(
    ("column_type", "drafted", "note"),
    [
        (sa.SMALLINT(), "integer", "narrower"),
        (sa.INTEGER(), "integer", ""),
        (sa.BIGINT(), "bigint", ""),
        (mysql.TINYINT(display_width=1), "boolean", ""),
        (mysql.TINYINT(), "integer", "narrower"),
        (mysql.INTEGER(unsigned=True), "bigint", "unsigned"),
        (mysql.BIGINT(unsigned=True), "numeric(20,0)", "unsigned"),
        (mysql.YEAR(), "integer", ""),
        (mysql.BIT(), None, "BIT"),
        (mysql.SET("a", "b"), None, "SET"),
        (mysql.ENUM("new", "it's"), "text", "one of new, it's"),
        (postgresql.ENUM("new", "old", name="state"), "text", "one of new, old"),
        (sa.REAL(), "number", "rounds"),
        (sa.DOUBLE_PRECISION(), "number", ""),
        (mysql.DOUBLE(), "number", ""),
        (sa.NUMERIC(), "decimal", ""),
        (sa.NUMERIC(10, 2), "numeric(10,2)", ""),
        (sa.NUMERIC(100, 2), "decimal", "numeric(100,2)"),
        (sa.VARCHAR(20), "varchar(20)", ""),
        (sa.VARCHAR(), "text", ""),
        (sa.VARCHAR(20_000), "text", "20000"),
        (sa.CHAR(36), "varchar(36)", ""),
        (mysql.LONGTEXT(), "text", ""),
        (mysql.TEXT(65_535), "text", ""),
        (postgresql.CITEXT(), "text", ""),
        (postgresql.DOMAIN("short", sa.VARCHAR(5)), "varchar(5)", ""),
        (postgresql.TIMESTAMP(timezone=True), "timestamp", ""),
        (postgresql.TIMESTAMP(), "timestamp", "UTC"),
        (mysql.DATETIME(), "timestamp", "0 places"),
        (mysql.DATETIME(fsp=6), "timestamp", ""),
        (sa.DATE(), "date", ""),
        (sa.UUID(), "uuid", ""),
        (postgresql.BYTEA(), "bytes", ""),
        (mysql.VARBINARY(9), "bytes", ""),
        (mysql.LONGBLOB(), "bytes", ""),
        (postgresql.JSONB(), "json", ""),
        (sa.TIME(), None, "no type"),
        (postgresql.INTERVAL(), None, "no type"),
        (postgresql.ARRAY(sa.TEXT()), None, "no type"),
        (postgresql.TSVECTOR(), None, "no type"),
        (postgresql.INET(), None, "no type"),
        (sa.NullType(), None, "no type"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_every_type_has_its_place_or_a_reason(column_type, drafted, note):
    choice = choice_of(column("c", column_type), in_key=False)
    assert choice.type == drafted
    assert note in choice.note if note else not choice.note
    if drafted:
        assert types_of(table(column("c", column_type)))["sales"].columns["c"] == drafted


def test_key_version_and_slot_are_chosen():
    kinds = types_of(
        table(column("a"), column("revision", sa.INTEGER()), key=("id", "a"), primary=False),
        table(column("id", mysql.BINARY(16)), column("slot", sa.INTEGER()), column("Version"), name="billing.sales"),
        table(column("on"), column("no", sa.INTEGER()), name="off"),
    )
    assert (kinds["sales"].key, kinds["sales"].version_column) == (("id", "a"), "revision")
    other = kinds["billing_sales"]
    assert (other.table, other.types["id"], other.slot_column) == ("billing.sales", "uuid", "shardctl_slot")
    assert other.version_column is None, "a text isn't a version"
    assert list(kinds["off"].columns) == ["id", "on", "no"]


@pytest.mark.parametrize(
    ("existing", "reason"),
    [
        pytest.param(table(key=()), "neither a primary key", id="no key"),
        pytest.param(table(name="odd name"), "letters, digits", id="a name with a blank"),
        pytest.param(table(column("id", sa.LargeBinary())), "bytes can't be a key", id="a key of bytes"),
        pytest.param(table(column("id", sa.VARCHAR(700))), "index 650", id="a long key"),
        pytest.param(table(column("id", sa.TIME())), "no type", id="a key without a type"),
        pytest.param(table(column("t", sa.TIME(), nullable=False)), "NOT NULL", id="NOT NULL without a type"),
    ],
)
def test_a_table_that_no_message_can_write_is_left_out_with_its_reason(existing, reason):
    draft = draft_of([existing, table(name="good")])
    assert draft.types == 1
    assert reason in draft.left_out[0]
    with pytest.raises(DraftError, match="no table"):
        draft_of([existing])


def test_what_no_message_sets_is_left_out():
    kind = types_of(
        table(column("t", sa.TIME(), nullable=False, default=True), column("n", sa.BIGINT(), numbered=True),
              column("g", generated=True))
    )["sales"]  # fmt: skip
    assert list(kind.columns) == ["id"]


@given(st.lists(st.text(max_size=12), max_size=3, unique=True), st.text(max_size=8), st.text(max_size=8))
def test_no_name_of_a_database_breaks_the_file(names, name, label):
    existing = table(
        *(column(text, postgresql.ENUM(label, name="e")) for text in names if text != "id"),
        name=name,
        parents=(((name,), label),),
    )
    kinds = types_of(existing, table(name="good"))
    assert "good" in kinds
    assert set(kinds) <= {"good", name}

"""Tables that were there before: their own types take the file's values as they are, or the write is refused with a reason."""

from __future__ import annotations

import pytest
from existing_kit import DAY, GOOD, ID, OTHER, Existing
from products_kit import PRODUCTS, SERVERS, empty_database

from consumer.errors import DataFaultError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=PRODUCTS)
def table(request):
    with empty_database(request, request.param) as url:
        made = Existing(request.param, url)
        made.create()
        yield made
        made.engine.dispose()


@pytest.fixture(autouse=True)
def _empty(table):
    table.run("DELETE FROM sales")


def test_values_reach_columns_of_other_types_as_they_are(table):
    table.write(**GOOD)
    stored = table.rows("id", "day", "name", "code", "state", "photo", "other", "small")
    digits = ID.replace("-", "") if table.product == "mariadb" else ID
    assert stored == [(digits, DAY, GOOD["name"], "x", "it's 100%", "00ff275c", OTHER, "7")]


def test_a_key_of_its_own_type_finds_its_row(table):
    table.write(**GOOD)
    assert table.write(revision=2, state="new") == 0
    assert table.write("update", revision=3, state="1") == 0
    assert table.write("update", revision=2, state="new") == 1  # stale: its row was found
    assert table.rows("state", "revision") == [("1", "3")]
    table.write("delete", revision=...)
    assert table.rows("state") == []


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        pytest.param({"name": "abcde "}, "'name' has more than the 5 characters", id="a blank that would be cut off"),
        pytest.param({"name": "abcdef"}, "'name' has more than the 5 characters", id="a text that is too long"),
        pytest.param({"code": "x "}, "'code' ends in a blank", id="a blank that would be lost"),
        pytest.param({"state": "old"}, "'state' isn't a label", id="no label"),
        pytest.param({"state": "NEW"}, "'state' isn't a label", id="a label in capitals"),
        pytest.param({"state": "2"}, "'state' isn't a label", id="a label's number"),
        pytest.param({"price": "1.25"}, "'price' has more places", id="a decimal that would be rounded"),
        pytest.param({"at": "2024-02-29T00:00:01Z"}, "'at' is a time", id="a time that would be cut"),
    ],
)
def test_what_a_column_would_change_is_refused(table, values, fault):
    if table.product not in SERVERS:
        pytest.skip("SQLite's declared types change nothing")
    with pytest.raises(DataFaultError, match=fault) as refused:
        table.write(**values)
    assert refused.value.reason == "bad_value"
    assert table.rows("id") == []


@pytest.mark.parametrize(("column", "text"), [("old", "\u00e9" * 255), ("new", "\u674e" * 85)])
def test_a_text_is_measured_as_its_column_counts(table, column, text):
    """MySQL's texts hold so many bytes of their own character set; blanks beyond them would be cut off."""
    table.write(**{column: text})
    assert table.rows(column) == [(text,)]
    if table.product == "mariadb":
        with pytest.raises(DataFaultError, match=f"{column!r} has more than the 255"):
            table.write(**{column: f"{text} "})


def test_bytes_that_would_be_filled_up_are_refused(table):
    if table.product != "mariadb":
        pytest.skip("no other database has a type that fills bytes up")
    with pytest.raises(DataFaultError, match="'photo' hasn't the 4 bytes"):
        table.write(photo="AP8n")


def test_what_a_column_cannot_hold_is_an_error_and_never_cut(table):
    """Left to the database, whose strictness the session sets."""
    if table.product not in SERVERS:
        pytest.skip("SQLite's declared types bound nothing")
    for values in ({"price": "12345678.0"}, {"small": 32_768}):
        with pytest.raises(Exception, match=r"(?i)out of range|overflow"):
            table.write(**values)
    assert table.rows("id") == []


def test_a_column_is_looked_at_again_after_it_was_altered(table):
    if table.product != "postgresql":
        pytest.skip("the other databases take texts for every type")
    table.write(**GOOD)
    table.run("ALTER TABLE sales ALTER state TYPE text", "ALTER TABLE sales ALTER other TYPE uuid USING other::uuid")
    with pytest.raises(Exception, match="is of type uuid"):
        table.write(revision=2, other=OTHER)
    table.write(revision=2, other=OTHER, state="any")
    assert table.rows("state") == [("any",)]
    table.run(
        'ALTER TABLE sales ALTER state TYPE "a state" USING NULL', "ALTER TABLE sales ALTER other TYPE varchar(36)"
    )
    with pytest.raises(Exception, match="is of type"):
        table.write(revision=3, other=OTHER, state="new")
    table.write(revision=3, other=OTHER, state="new")

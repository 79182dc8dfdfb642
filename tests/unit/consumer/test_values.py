"""Bodies that can't land are refused; keys compare as the database compares them; plain rows keep what was written."""

from __future__ import annotations

from decimal import Decimal

import pytest
from consumer_kit import CONFIG, raw, write

from consumer.errors import DataFaultError, NeverError
from consumer.sinks import values

KINDS = CONFIG.message_types


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        pytest.param("customer", b"", "bad_json", id="empty"),
        pytest.param("customer", b"[]", "bad_json", id="array"),
        pytest.param("customer", b"null", "bad_json", id="null"),
        pytest.param("customer", b'{"customer_id": "1"', "bad_json", id="cut off"),
        pytest.param("customer", b'{"customer_id": "1"} x', "bad_json", id="more behind"),
        pytest.param("customer", b'\xef\xbb\xbf{"customer_id": "1"}', "bad_json", id="byte order mark"),
        pytest.param("customer", b'{"customer_id": "\xff"}', "bad_json", id="not UTF-8"),
        pytest.param("customer", b'{"customer_id": "\\ud800"}', "bad_json", id="half a surrogate pair"),
        pytest.param("customer", b'{"customer_id": "1", "credit": NaN}', "bad_json", id="NaN"),
        pytest.param("customer", b'{"customer_id": "1", "credit": Infinity}', "bad_json", id="Infinity"),
        pytest.param("mixed", b'{"Id": 1, "aNumber": 1e400}', "bad_json", id="beyond a double"),
        pytest.param("mixed", b'{"Id": 1, "aJson": ' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_json", id="too deep"),
        pytest.param("customer", b'{"name": "x"}', "missing_key", id="no key"),
        pytest.param("customer", b'{"customer_id": null}', "missing_key", id="key null"),
        pytest.param("line", b'{"order_id": "1"}', "missing_key", id="half a key"),
        pytest.param("customer", b'{"customer_id": "1", "nmae": "x"}', "unknown_column", id="misspelt"),
        pytest.param("customer", b'{"customer_id": "1", "slot": 5}', "unknown_column", id="the slot column"),
        pytest.param("customer", b'{"customer_id": 1}', "bad_value", id="number for text"),
        pytest.param("customer", b'{"customer_id": "1", "name": "a\\u0000b"}', "bad_value", id="NUL"),
        pytest.param("customer", b'{"customer_id": "1", "credit": 9223372036854775808}', "bad_value", id="bigint over"),
        pytest.param("customer", b'{"customer_id": "1", "credit": 1.0}', "bad_value", id="float for bigint"),
        pytest.param("customer", b'{"customer_id": "1", "credit": true}', "bad_value", id="boolean for bigint"),
        pytest.param("mixed", b'{"Id": 1, "anInteger": 2147483648}', "bad_value", id="integer over"),
        pytest.param("mixed", b'{"Id": 1, "aBoolean": 1}', "bad_value", id="number for boolean"),
        pytest.param("mixed", b'{"Id": 1, "aDecimal": "twelve"}', "bad_value", id="words for decimal"),
        pytest.param("mixed", b'{"Id": 1, "aDecimal": "NaN"}', "bad_value", id="decimal NaN"),
        pytest.param("mixed", b'{"Id": 1, "aDecimal": "1_000"}', "bad_value", id="decimal as Python writes it"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "yesterday"}', "bad_value", id="words for timestamp"),
        pytest.param("mixed", b'{"Id": 1, "aTime": 1700000000}', "bad_value", id="number for timestamp"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "2026-W01-1"}', "bad_value", id="week date"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "20260102T030405Z"}', "bad_value", id="basic format"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "2026-02-30T00:00:00Z"}', "bad_value", id="no such day"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "0001-01-01T00:00:00+05:00"}', "bad_value", id="before the year 1"),
        pytest.param("document", b'{"id": "1", "title": "x"}', "missing_version", id="no version"),
        pytest.param("document", b'{"id": "1", "revision": null}', "missing_version", id="version null"),
    ],
)
def test_a_body_that_cant_land_is_refused_before_any_transaction(kind, data, reason):
    with pytest.raises(NeverError) as refused:
        values.read(raw(kind, data, "1"), KINDS[kind])
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        pytest.param("priced", b'{"price": 1}', b'{"price": "1.00"}', id="decimals"),
        pytest.param("priced", b'{"price": 2.50}', b'{"price": "2.5"}', id="decimal with a fraction"),
        pytest.param(
            "reading", b'{"sensor":"s","at":"2026-01-01T00:00:00Z"}', b'{"sensor":"s","at":"2026-01-01T02:00:00+02:00"}',
            id="one moment in two zones",
        ),
        pytest.param(
            "reading", b'{"sensor":"s","at":"2026-01-01T00:00:00.1234567Z"}',
            b'{"sensor":"s","at":"2026-01-01T00:00:00.123457Z"}', id="rounded to microseconds",
        ),
    ],
)  # fmt: skip
def test_two_spellings_of_one_key_are_one_row(kind, one, other):
    assert write(kind, one, key="k").row == write(kind, other, key="k").row


def test_keys_beyond_a_doubles_digits_stay_apart():
    """A 25-digit id that was read as a float would swallow its neighbour's write."""
    near = [b'{"price": 1234567890123456789012345}', b'{"price": 1234567890123456789012346}']
    rows = [write("priced", data, key="k").row for data in near]
    assert rows == [(Decimal(1234567890123456789012345),), (Decimal(1234567890123456789012346),)]


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        pytest.param(
            '"aText": "x", "anInteger": 5, "aNumber": 1.5', {"aText": "x", "anInteger": 5, "aNumber": 1.5}, id="as is"
        ),
        pytest.param(
            '"aText": null, "aTime": null, "aJson": null', {"aText": None, "aTime": None, "aJson": None}, id="null"
        ),
        pytest.param('"aTime": "2026-01-02T00:00:00+02:00"', {"aTime": "2026-01-01 22:00:00.000000"}, id="time in UTC"),
        pytest.param('"aJson": {"a": [1, "\u00e9"]}', {"aJson": '{"a":[1,"é"]}'}, id="JSON as text"),
        pytest.param('"aDecimal": 12.50', {"aDecimal": "12.50"}, id="a decimal's digits"),
        pytest.param(
            '"aDecimal": 0.12345678901234567890123', {"aDecimal": "0.12345678901234567890123"}, id="beyond a double"
        ),
        pytest.param(
            '"aDecimal": 123456789012345678901234567', {"aDecimal": "123456789012345678901234567"}, id="a long integer"
        ),
        pytest.param('"aDecimal": "7"', {"aDecimal": "7"}, id="a decimal as text"),
    ],
)
def test_plain_rows_keep_what_was_written(written, plain):
    delivery = write("mixed", f'{{"Id": 1, {written}}}'.encode(), key="k")
    values.read(delivery, KINDS["mixed"])
    assert values.plain(delivery, KINDS["mixed"], None) == {"slot": delivery.slot, "Id": 1} | plain


@pytest.mark.parametrize(
    ("digits", "fits"), [("9" * 35, True), ("1" + "0" * 35, False), ("-1e35", False), ("1e-999", True), ("0e999", True)]
)
def test_a_decimal_that_would_be_cut_is_refused(digits, fits):
    delivery = write("mixed", f'{{"Id": 1, "aDecimal": "{digits}"}}'.encode(), key="k")
    if fits:
        assert values.plain(delivery, KINDS["mixed"], 35)["aDecimal"] == digits
    else:
        with pytest.raises(DataFaultError):
            values.plain(delivery, KINDS["mixed"], 35)

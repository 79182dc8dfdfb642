"""Bodies that can't land are refused; keys compare as the database compares them; plain rows keep what was written."""

from __future__ import annotations

from decimal import Decimal

import pytest
from consumer_kit import CONFIG, raw, write

from consumer.errors import PermanentError
from consumer.sinks import values
from shardctl.wire.bodies import Rules
from shardctl.wire.values import LIMITS

RULES = {
    database: {name: Rules(kind, limits) for name, kind in CONFIG.message_types.items()}
    for database, limits in LIMITS.items()
}


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
        pytest.param("customer", b'{"customer_id": "1", "name": "a", "name": "b"}', "bad_json", id="given twice"),
        pytest.param("mixed", b'{"Id": 1, "aJson": {"a": 1, "\\u0061": 2}}', "bad_json", id="given twice inside"),
        pytest.param("mixed", b'{"Id": 1, "aText": ' + b"[" * 1_020 + b"]" * 1_020 + b"}", "bad_json", id="1,020 deep"),
        pytest.param("mixed", b'{"Id": 1, "aNumber": 1e-400}', "bad_value", id="too small for a double"),
        pytest.param("mixed", b'{"Id": 1, "aJson": {"a": "\\u0000"}}', "bad_value", id="NUL in JSON"),
        pytest.param("mixed", b'{"Id": 1, "aJson": [{"\\u0000": 1}]}', "bad_value", id="NUL in a name"),
        pytest.param("mixed", b'{"Id": 1, "aJson": [1e-16384]}', "bad_value", id="too small for jsonb"),
        pytest.param("mixed", b'{"Id": 1, "aTime": "2026-01-01T00:00:00+16:00"}', "bad_value", id="no such offset"),
        pytest.param("mixed", b'{"Id": 1, "aText": "2"}', "wrong_key", id="another key"),
        pytest.param("customer", b'{"customer_id": "01"}', "wrong_key", id="another spelling of the key"),
        pytest.param("document", b'{"id": "1", "title": "x"}', "missing_version", id="no version"),
        pytest.param("document", b'{"id": "1", "revision": null}', "missing_version", id="version null"),
    ],
)
def test_a_body_that_cant_land_is_refused_before_any_transaction(kind, data, reason):
    with pytest.raises(PermanentError) as refused:
        values.read(raw(kind, data, "1"), RULES["postgresql"][kind])
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "spelling", "other"),
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
def test_two_spellings_of_one_key_are_one_row(kind, spelling, other):
    assert write(kind, spelling, key="k").row == write(kind, other, key="k").row


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
    delivery = write("mixed", f'{{"Id": 1, {written}}}'.encode(), key="x")
    values.read(delivery, RULES["mariadb"]["mixed"])
    assert values.plain(delivery, RULES["mariadb"]["mixed"]) == {"slot": delivery.slot, "Id": 1} | plain


@pytest.mark.parametrize(
    ("database", "digits", "fits"),
    [
        ("mariadb", "9" * 35, True),
        ("mariadb", "1" + "0" * 35, False),
        ("mariadb", "-1e35", False),
        ("mariadb", "0e999", True),
        ("mariadb", "1e-30", True),
        ("mariadb", "1e-31", False),
        ("mariadb", "0." + "1" * 31, False),
        ("mariadb", "0.1" + "0" * 31, True),
        ("postgresql", "1e131071", True),
        ("postgresql", "1e131072", False),
        ("postgresql", "1e-16383", True),
        ("postgresql", "1e-16384", False),
        ("postgresql", "1e999999", False),
        ("postgresql", "0e-20000", False),
        ("sqlite", "123456789012345", True),
        ("sqlite", "1234567890.12345", True),
        ("sqlite", "1234567890.123456", False),
        ("sqlite", "9223372036854775807", True),
        ("sqlite", "9223372036854775808", False),
        ("sqlite", "1e400", False),
    ],
)
def test_a_decimal_that_the_database_would_cut_is_refused(database, digits, fits):
    for written in (f'"{digits}"', digits) if "e400" not in digits and "e1310" not in digits else (f'"{digits}"',):
        delivery = raw("mixed", f'{{"Id": 1, "aDecimal": {written}}}'.encode(), "k")
        if fits:
            values.read(delivery, RULES[database]["mixed"])
        else:
            with pytest.raises(PermanentError) as refused:
                values.read(delivery, RULES[database]["mixed"])
            assert refused.value.reason in ("bad_value", "bad_json")


@pytest.mark.parametrize(
    ("digits", "plain"),
    [("0e999", "0"), ("1.5e3", "1500"), ("1e-3", "0.001"), ("7.00", "7"), ("-.5", "-.5"), ("+.0", "+0"), ("-5.", "-5")],
)
def test_a_plain_decimal_has_no_exponent(digits, plain):
    """SQLite reads a number with a point or an exponent as a double, and a whole one of 64 bits as it is."""
    delivery = raw("mixed", f'{{"Id": 1, "aDecimal": "{digits}"}}'.encode(), "k")
    values.read(delivery, RULES["sqlite"]["mixed"])
    assert values.plain(delivery, RULES["sqlite"]["mixed"])["aDecimal"] == plain


def test_numbers_inside_json_keep_their_digits():
    written = '{"a":[12345678901234567890.123456789,18446744073709551616,1.10]}'
    delivery = raw("mixed", f'{{"Id": 1, "aDecimal": 1.10, "aJson": {written}}}'.encode(), "k")
    values.read(delivery, RULES["mariadb"]["mixed"])
    assert values.plain(delivery, RULES["mariadb"]["mixed"]) == {
        "slot": delivery.slot, "Id": 1, "aDecimal": "1.10", "aJson": written,
    }  # fmt: skip

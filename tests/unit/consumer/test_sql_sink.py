"""Grouping writes into statements brings about the same as one write after the other; bodies that can't land are refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from consumer_kit import CONFIG, Shard, raw, write
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from consumer import database
from consumer.errors import NeverError
from consumer.rows import moment_of
from consumer.sinks.sql import SqlSink, group

KINDS = CONFIG.message_types
OPERATIONS = ("insert", "upsert", "update", "delete")


def some_of(columns, values):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(columns, values))


TEXTS = st.sampled_from(["a", "b", "c"])
REVISIONS = st.integers(1, 4)
STAMPS = st.sampled_from(
    ["2026-01-01T10:00:00+02:00", "2026-01-01T09:00:00Z", "2026-01-01T08:00:00Z", "2026-01-01T08:00:00.5Z"]
)
MOMENTS = st.sampled_from(["2026-01-01T08:00:00Z", "2026-01-01T10:00:00+02:00", "2026-01-01T08:00:00.000001Z"])
BODIES = {
    "customer": st.builds(dict, some_of(["name", "email"], TEXTS), customer_id=st.sampled_from(["1", "2"])),
    "profile": st.builds(dict, some_of(["bio"], TEXTS), customer_id=st.sampled_from(["1", "2"])),
    "document": st.builds(dict, some_of(["title", "note"], TEXTS), id=st.sampled_from(["1", "2"]), revision=REVISIONS),
    "stamped": st.builds(dict, some_of(["title"], TEXTS), id=st.just("1"), changed_at=STAMPS),
    "ranked": st.builds(dict, some_of(["title"], TEXTS), id=st.just("1"), rank=st.sampled_from(["10", "9", 9, 8.5])),
    "labelled": st.builds(dict, some_of(["title"], TEXTS), id=st.just("1"), label=TEXTS),
    "line": st.builds(dict, some_of(["sku"], TEXTS), order_id=st.sampled_from(["1", "2"]), line=st.integers(1, 2)),
    "reading": st.builds(dict, some_of(["value"], st.integers(0, 3)), sensor=st.just("1"), at=MOMENTS),
    "mixed": st.builds(
        dict,
        some_of(["anInteger", "aBoolean"], st.none()),
        Id=st.sampled_from([1, 2]),
        aText=st.sampled_from(["1", "2"]),
    ),
    "priced": st.builds(
        dict, price=st.sampled_from([1, "1", 1.0, "1.00", 2.5, "2.5"]), name=st.sampled_from(["1", "2"])
    ),
}


@st.composite
def schedules(draw, kinds):
    """A few hot rows under every operation; a routing key's writes meet several tables."""
    choices = st.sampled_from(kinds).flatmap(lambda kind: st.tuples(st.just(kind), BODIES[kind]))
    return draw(st.lists(st.tuples(choices, st.sampled_from(OPERATIONS)), min_size=1, max_size=14))


def made(schedule):
    return [write(kind, body, operation) for (kind, body), operation in schedule]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    shard = Shard(f"sqlite:///{tmp_path_factory.mktemp('db')}/shard.db")
    event.listen(shard.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    shard.engine.dispose()  # nobody here asks what a power cut leaves
    yield shard
    shard.close()


@pytest.mark.parametrize(
    "kinds",
    [
        ("customer", "profile"),
        ("document",),
        ("stamped", "ranked", "labelled"),
        ("line", "reading"),
        ("priced", "mixed"),
    ],
    ids="-".join,
)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_batch_does_what_its_writes_do_one_after_the_other(shard, kinds, data):
    schedule = data.draw(schedules(kinds))
    tables = {kind for (kind, _), _ in schedule}
    results = []
    for at_once in (False, True):
        shard.clear()
        writes = made(schedule)
        for batch in [writes] if at_once else [[each] for each in writes]:
            shard.settle(*batch)
        results.append(
            (
                [each.fault and each.fault.reason for each in writes],
                {kind: shard.table(kind) for kind in sorted(tables)},
            )
        )
    assert results[0] == results[1]


TRAPS = {
    "of equal versions the first": [
        ("document", {"id": "1", "title": "stays", "revision": 2}, "upsert"),
        ("document", {"id": "1", "title": "stale", "revision": 2}, "upsert"),
    ],
    "the higher version first": [
        ("document", {"id": "1", "title": "stays", "revision": 10}, "upsert"),
        ("document", {"id": "1", "title": "stale", "revision": 9}, "upsert"),
    ],
    "decimal versions as text": [
        ("ranked", {"id": "1", "title": "over", "rank": "9"}, "upsert"),
        ("ranked", {"id": "1", "title": "stays", "rank": "10"}, "upsert"),
    ],
    "decimal versions beyond a double": [
        ("ranked", b'{"id": "1", "title": "over", "rank": 1.00000000000000000001}', "upsert"),
        ("ranked", b'{"id": "1", "title": "same, or stays", "rank": 1.00000000000000000002}', "upsert"),
    ],
    "versions in two time zones": [
        ("stamped", {"id": "1", "title": "stays", "changed_at": "2026-01-01T09:00:00Z"}, "upsert"),
        ("stamped", {"id": "1", "title": "stale", "changed_at": "2026-01-01T10:00:00+02:00"}, "upsert"),
    ],
    "one row under three routing keys": [
        ("mixed", {"Id": 1, "aText": "a", "anInteger": 1}, "upsert"),
        ("mixed", {"Id": 1, "aText": "b"}, "delete"),
        ("mixed", {"Id": 1, "aText": "c", "anInteger": 3}, "upsert"),
    ],
    "a row that comes, goes and comes": [
        ("customer", {"customer_id": "1", "name": "over"}, "insert"),
        ("customer", {"customer_id": "1"}, "delete"),
        ("customer", {"customer_id": "1", "name": "stays"}, "insert"),
    ],
    "updates before and after": [
        ("customer", {"customer_id": "1", "name": "no row yet"}, "update"),
        ("customer", {"customer_id": "1"}, "insert"),
        ("customer", {"customer_id": "1", "name": "stays"}, "update"),
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_known_traps(shard, trap):
    results = []
    for at_once in (False, True):
        shard.clear()
        writes = [write(kind, body, operation) for kind, body, operation in TRAPS[trap]]
        for batch in [writes] if at_once else [[each] for each in writes]:
            shard.settle(*batch)
        results.append(([each.fault is not None for each in writes], shard.table(TRAPS[trap][0][0])))
    assert results[0] == results[1]
    assert "stale" not in str(results[0][1])


@pytest.mark.parametrize(
    ("writes", "statements"),
    [
        pytest.param(
            [
                ("line", {"order_id": "1", "line": 1, "sku": "x"}, "insert"),
                ("line", {"order_id": "1", "line": 1}, "delete"),
                ("line", {"order_id": "1", "line": 2, "sku": "x"}, "insert"),
            ],
            3,
            id="another row of the routing key, that may need what went before",
        ),
        pytest.param(
            [("customer", {"customer_id": str(n), "name": "x"}, "upsert") for n in range(500)], 1, id="one shape"
        ),
        pytest.param(
            [("customer", {"customer_id": "1", "name": str(n)}, "upsert") for n in range(500)], 1, id="one hot row"
        ),
        pytest.param(
            [("document", {"id": "1", "revision": n}, "upsert") for n in range(500)], 1, id="one hot row with versions"
        ),
        pytest.param(
            [
                ("customer" if n % 2 else "profile", {"customer_id": str(n), "name" if n % 2 else "bio": "x"}, "upsert")
                for n in range(500)
            ],
            2,
            id="two tables, different keys",
        ),
        pytest.param(
            [("customer", {"customer_id": "1"}, "insert") for _ in range(5)], 5, id="an insert again and again"
        ),
        pytest.param(
            [("customer", {"customer_id": "1"}, ("upsert", "delete")[n % 2]) for n in range(6)], 6, id="to and fro"
        ),
        pytest.param(
            [("labelled", {"id": "1", "label": str(n)}, "upsert") for n in range(3)], 3, id="versions of text"
        ),
    ],
)
def test_few_statements_where_order_allows(writes, statements):
    assert len(group([write(kind, body, operation) for kind, body, operation in writes], KINDS)) == statements


def test_ten_thousand_repeated_inserts_are_grouped_in_time():
    writes = [write("customer", {"customer_id": "1"}, "insert")] * 3_000
    assert len(group(writes, KINDS)) == 3_000


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
    sink = SqlSink(database.DIALECTS["sqlite"], KINDS)
    with pytest.raises(NeverError) as refused:
        sink.check(raw(kind, data, "1"))
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
    ("text", "expected"),
    [
        ("2026-01-02", "2026-01-02 00:00:00+00:00"),
        ("2026-01-02T03:04", "2026-01-02 03:04:00+00:00"),
        ("2026-01-02 03:04:05", "2026-01-02 03:04:05+00:00"),
        ("2026-01-02T03:04:05.1Z", "2026-01-02 03:04:05.100000+00:00"),
        ("2026-01-02T03:04:05.999999999Z", "2026-01-02 03:04:06+00:00"),
        ("2026-01-02T03:04:05-05:30", "2026-01-02 08:34:05+00:00"),
        ("2026-01-02T03:04:05 Z", "None"),
        ("2026-01-02T25:04:05Z", "None"),
        ("٢٠٢٦-01-02", "None"),
    ],
)
def test_moments(text, expected):
    assert str(moment_of(text)) == expected

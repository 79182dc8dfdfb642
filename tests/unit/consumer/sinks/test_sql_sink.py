"""Few statements bring about the same as one write after the other."""

from __future__ import annotations

import orjson
import pytest
from consumer_kit import Shard, raw, write
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from sqlalchemy import event

from consumer.database import sessions
from consumer.sinks.sql import SqlSink
from shardctl.fleet.settings.messagetypes import MessageType

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


@pytest.mark.slow
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
@examples(0.3)
@given(data=st.data())
def test_a_batch_does_what_its_writes_do_one_after_the_other(shard, kinds, data):
    schedule = data.draw(schedules(kinds))
    tables = {kind for (kind, _), _ in schedule}
    results = []
    for at_once in (False, True):
        shard.clear()
        writes = made(schedule)
        for batch in [writes] if at_once else [[single] for single in writes]:
            shard.settle(*batch)
        results.append(
            (
                [single.fault and single.fault.reason for single in writes],
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
    "a delete with a version before one without": [
        ("document", {"id": "1", "title": "stale", "revision": 2}, "upsert"),
        ("document", {"id": "1", "revision": 3}, "delete"),
        ("document", {"id": "1", "revision": None}, "delete"),
    ],
    **{
        f"a delete without a version before one with {version!r}": [
            (kind, {"id": "1", "title": "stale", column: version}, "upsert"),
            (kind, {"id": "1", column: None}, "delete"),
            (kind, {"id": "1", column: later}, "delete"),
        ]
        for kind, column, version, later in (
            ("document", "revision", 2, 3),
            ("ranked", "rank", "9", "10"),
            ("stamped", "changed_at", "2026-01-01T08:00:00Z", "2026-01-01T09:00:00Z"),
            ("labelled", "label", "a", "b"),
        )
    },
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
        for batch in [writes] if at_once else [[single] for single in writes]:
            shard.settle(*batch)
        results.append(([single.fault is not None for single in writes], shard.table(TRAPS[trap][0][0])))
    assert results[0] == results[1]
    assert "stale" not in str(results[0][1])


@pytest.mark.parametrize("column", ["size", "version"])
def test_a_whole_number_beyond_a_doubles_digits_compares_as_its_column_stores_it(shard, column):
    """SQLite compares whole numbers with doubles exactly: no row would have such a key, and its version stay below it."""
    kind = MessageType(
        table="measures",
        key=("name", "size"),
        version_column="version",
        columns={"name": "text", "size": "number", "version": "number"},
    )
    sink = SqlSink(shard.dialect, {"measure": kind})
    shard.run("DROP TABLE IF EXISTS measures")
    shard.run("CREATE TABLE measures (name TEXT, size DOUBLE, version DOUBLE, slot INTEGER, PRIMARY KEY (name, size))")
    numbers = {"size": 1, "version": 1, column: 9_007_199_254_740_993}
    for operation, stale in ("upsert", 0), ("update", 1):
        assert applied(shard, sink, operation, numbers) == stale
    applied(shard, sink, "delete", {"size": numbers["size"], "version": 1e300})
    assert shard.rows("SELECT * FROM measures") == []


def applied(shard, sink, operation, numbers):
    """How many writes were stale."""
    delivery = raw("measure", orjson.dumps({"name": "a", **numbers}), "a", operation)
    sink.check(delivery)
    with sessions.transaction(shard.engine, shard.dialect) as connection:
        return sink.apply(connection, [delivery])

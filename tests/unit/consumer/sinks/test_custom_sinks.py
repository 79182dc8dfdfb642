"""Custom sinks: found or refused in words, and beside other sinks without losing any key's order."""

from __future__ import annotations

import sys
import types

import orjson
import pytest
from arrival_kit import Database, config_of
from consumer_kit import raw
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from consumer.database.dialects import DIALECTS
from consumer.delivery import check_slot
from consumer.errors import PermanentError
from consumer.sinks import custom
from consumer.sinks.router import Router, share_out, sink_of
from consumer.sinks.sql import SqlSink
from shardctl.errors import EXIT_USAGE
from shardctl.fleet.keyspace import SlotRule
from shardctl.fleet.load import fleet_from
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.fleet.yamlfile import parse
from shardctl.wire.message import Write, encode, slot_for

KINDS = config_of("""
  row: {table: events, key: id, routing_key: entity, columns: {id: text, entity: text}}
  one: {sink: "a:one", routing_key: entity}
  two: {sink: "a:two", routing_key: entity}
""").message_types


class Diary:
    """A sink that writes down the calls it gets."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def check(self, delivery):
        delivery.body = {"checked by": self.name}

    def apply(self, _, writes):
        self.calls.append((self.name, [write.idempotency_key for write in writes]))
        return 1


def write(kind, key, ident, row=None):
    made = raw(kind, b"", key, slot=0, ident=ident)
    made.row = (row,) if kind == "row" else ()
    return made


def shares_of(writes):
    sinks = {kind: Diary(kind, []) for kind in KINDS}
    return share_out(writes, sinks, KINDS)


@examples(3)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30))
def test_no_call_overtakes_a_key_or_a_row(story):
    writes = [write(kind, key, str(n), row) for n, (kind, key, row) in enumerate(story)]
    shares = shares_of(writes)
    applied = [write for share in shares for write in share.writes]
    assert sorted(applied, key=lambda write: int(write.idempotency_key)) == writes
    for share in shares:
        assert {write.message_type for write in share.writes} == {share.sink.name}
    for same in (lambda write: write.partition_key, lambda write: write.row or id(write)):
        for identity in {same(write) for write in writes}:
            assert [write for write in applied if same(write) == identity] == [
                write for write in writes if same(write) == identity
            ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "calls"),
    [
        pytest.param(["row"], 1, id="one sink"),
        pytest.param(["row", "one"], 2, id="two in turn"),
        pytest.param(["row", "one", "row"], 3, id="there and back"),
        pytest.param(["one", "two", "row"], 3, id="three"),
    ],
)
def test_few_calls_however_many_keys(kinds, calls):
    """A thousand keys with one pattern take as many calls as one of them."""
    writes = [
        write(kind, str(key), f"{key}/{at}", f"{key}/{at}") for key in range(1_000) for at, kind in enumerate(kinds)
    ]
    assert len(shares_of(writes)) == calls


def test_each_type_is_checked_by_its_own_sink_and_the_stale_are_summed():
    calls = []
    sinks = {"row": Diary("sql", calls), "one": Diary("1", calls), "two": Diary("1", calls)}
    router = Router(sinks, KINDS)
    message = write("two", "a", "1")
    router.check(message)
    assert message.body == {"checked by": "1"}
    assert router.apply(None, [write("row", "a", "1"), write("one", "a", "2")]) == 2
    assert calls == [("sql", ["1"]), ("1", ["2"])]


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("my_sinks")
    monkeypatch.setitem(sys.modules, "my_sinks", made)
    return made


def test_without_custom_types_the_sql_sink_stands_alone():
    sql = SqlSink(DIALECTS["sqlite"], KINDS)
    assert sink_of(sql, {"row": KINDS["row"]}) is sql


def test_types_with_one_factory_share_one_sink(module):
    made = []
    module.factory = lambda: made.append(Diary("x", [])) or made[-1]
    kinds = {name: KINDS["one"].model_copy(update={"sink": "my_sinks:factory"}) for name in ("a", "b")}
    router = sink_of(SqlSink(None, kinds), kinds)
    assert len(made) == 1
    assert router._sinks["a"] is router._sinks["b"]


def broken():
    raise RuntimeError("no settings")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.at.all:x", "nowhere.at.all can't be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("my_sinks:nobody", "my_sinks has no nobody"),
        ("my_sinks:number", "my_sinks holds something that can't be called as number"),
        ("my_sinks:broken", "broken() raised RuntimeError: no settings"),
        ("my_sinks:object", "has no check and no apply"),
        ("my_sinks:half", "which has no apply"),
    ],
)
def test_a_sink_that_cant_be_had_is_refused_in_one_line(module, path, says):
    module.number, module.broken, module.object = 5, broken, object
    module.half = lambda: types.SimpleNamespace(check=print, apply=5)
    with pytest.raises(custom.SinkError) as refused:
        custom.load("parcel", path, {})
    assert refused.value.exit_code == EXIT_USAGE
    text = str(refused.value)
    assert text.startswith(f"message_types.parcel.sink: {path}: ")
    assert says in text
    assert "Fix: " in text
    assert "\n" not in text


def test_a_module_that_fails_by_itself_is_reported_too(tmp_path, monkeypatch):
    (tmp_path / "half_a_module.py").write_text("raise ValueError('at import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(custom.SinkError, match="ValueError: at import"):
        custom.load("parcel", "half_a_module:x", {})


# --- bodies and slots -----------------------------------------------------------------------------------------------------

ANY_BODY = """
  blob: {sink: "my_sinks:Accepts", routing_key: entity}
  timed: {sink: "my_sinks:Accepts", routing_key: entity, time_bucket: {field: at, unit: day}}
"""


class Accepts:
    def check(self, delivery):
        pass

    def apply(self, _connection, _writes):
        return 0


@pytest.fixture
def accepting(module):
    module.Accepts = Accepts
    return Database("sqlite://", ANY_BODY)


def test_a_body_may_be_any_bytes(accepting):
    assert accepting.arrive("blob", b"\x00\xff not JSON", "k").fault is None
    assert accepting.arrive("blob", b"", "k", slot=1).fault.reason == "wrong_slot"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (orjson.dumps({"at": "2026-01-02T03:04:05Z"}), None),
        (b"\xff", "bad_json"),
        (b"[]", "bad_json"),
        (b"{}", "bad_time"),
        (orjson.dumps({"at": "2026-01-03T03:04:05Z"}), "wrong_slot"),
    ],
)
def test_a_type_routed_by_time_has_a_json_body_whatever_its_sink_reads(accepting, body, reason):
    kind = accepting.config.message_types["timed"]
    slot = slot_for(kind, "k", {"at": "2026-01-02T03:04:05Z"}, SlotRule(6))
    fault = accepting.arrive("timed", body, "k", slot=slot).fault
    assert (fault and fault.reason) == reason


def test_a_configuration_with_sinks_comes_out_of_its_file_as_it_went_in():
    config = config_of(ANY_BODY + "  row: {table: rows, key: id, columns: {id: text}}\n")
    assert ShardConfig.model_validate_json(config.model_dump_json()) == config


def test_producers_send_such_types_like_any_other():
    fleet = fleet_from(
        parse(
            """
fleet: shop
project: test-project
image: consumer:1
message_types: {movement: {sink: "examples.inventory:Inventory", routing_key: sku}}
shards: [{name: s0, slots: 0-1023}]
""",
            "test",
        )
    )
    from datetime import UTC, datetime

    sent = encode(fleet, Write("movement", {"sku": "bolt", "quantity": 5, "more": [1]}), datetime.now(UTC))
    assert orjson.loads(sent.data) == {"sku": "bolt", "quantity": 5, "more": [1]}
    assert sent.attributes["partition_key"] == "bolt"


def test_the_check_of_the_slot_needs_no_body(accepting):
    check_slot(accepting.arrive("blob", b"\xff", "k"), accepting.config)
    with pytest.raises(PermanentError):
        check_slot(accepting.arrive("blob", b"\xff", "k", slot=1), accepting.config)

"""What one transaction records and what it refuses to, on SQLite. On every database: tests/integration/consumer."""

from __future__ import annotations

import pytest
from consumer_kit import Shard, write

from shardctl.shard.schema import InboxOutcome


@pytest.fixture
def shard(tmp_path):
    made = Shard(f"sqlite:///{tmp_path}/shard.db")
    yield made
    made.close()


def test_what_cant_be_read_is_recorded_only_once_its_letter_is_out(shard):
    """Else a crash between the two would leave a write that is done by the inbox's word, and is nowhere."""
    unreadable, good = (
        write("customer", b"{", key="a", ident="bad"),
        write("customer", {"customer_id": "a"}, ident="good"),
    )
    outcome = shard.store.apply([unreadable, good])
    assert (outcome.poison, outcome.applied) == ((unreadable,), 0)
    assert (shard.inbox(), shard.table("customer")) == ([], [])
    unreadable.dead_lettered = True
    outcome = shard.store.apply([unreadable, good])
    assert (outcome.poison, outcome.dead, outcome.applied) == ((), 1, 1)
    assert shard.inbox() == [("bad", InboxOutcome.DEAD), ("good", InboxOutcome.APPLIED)]
    with shard.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT outcome, reason FROM shardctl_inbox ORDER BY outcome").all() == [
            (None, None), (1, "bad_json")
        ]  # fmt: skip

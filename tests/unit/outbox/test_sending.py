"""What a relay sends in one turn: each slot in order, and no longer than the turn may take."""

from __future__ import annotations

import asyncio

from shardctl.outbox import sending
from shardctl.outbox.row import Row
from shardctl.outbox.sending import RefusedError, send

ROWS = [Row(position, 1, {"partition_key": f"k{position}"}, b"{}", f"k{position}") for position in range(1, 41)]
LAST = ROWS[-1].position


class Slow:
    """Refuses one row and every request that holds it, and takes its time for each request."""

    def __init__(self):
        self.taken = []

    async def publish(self, slot, rows, timeout_seconds):
        await asyncio.sleep(0.005)
        if any(row.position == LAST for row in rows):
            raise RefusedError("never")
        self.taken += [row.position for row in rows]


def test_rows_of_a_refused_request_that_go_one_by_one_end_with_the_turn(monkeypatch):
    """Else the database ends the turn's session before the turn does, nothing is deleted, and all is published again for ever."""
    monkeypatch.setattr(sending, "TURN_SECONDS", 0.05)
    topics, rows, refused, turns = Slow(), ROWS, {}, 0
    while rows:
        sent = asyncio.run(send(topics, rows, {}))
        assert len(sent.published) < len(ROWS) - 1
        refused |= sent.refused
        rows = [row for row in rows if row.position not in {*sent.published, *sent.refused}]
        turns += 1
        assert turns < len(ROWS)
    assert topics.taken == [row.position for row in ROWS[:-1]]
    assert refused == {LAST: "never"}

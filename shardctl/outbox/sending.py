"""Rows of an outbox on their way to Pub/Sub: each slot in order, many slots at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shardctl.outbox.refusals import Refusals
from shardctl.outbox.row import UNREADABLE, Row
from shardctl.wire.requests import in_requests

MAX_REQUESTS = 32  # in flight at once
ATTEMPT_SECONDS = 5.0
TURN_SECONDS = 10.0  # after so long no more requests begin: the database waits with its transaction open


class RefusedError(Exception):
    """Pub/Sub refuses the messages of a request, and would refuse them again."""


class NotTakenError(Exception):
    """Pub/Sub hasn't confirmed the messages. They may have arrived."""


class Topics(Protocol):
    async def publish(self, slot: int, rows: Sequence[Row], timeout_seconds: float) -> None:
        """Publish rows of one slot, in order, in one request; durable on return. Raises RefusedError, NotTakenError."""


@dataclass(slots=True)
class Sent:
    """What became of rows, by their positions, and why slots wait. Rows in neither wait as well.

    `behind` names the refused row of its key that a row has to wait for.
    """

    published: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    behind: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, NotTakenError] = field(default_factory=dict)


async def send(topics: Topics, rows: Sequence[Row], refused: Refusals) -> Sent:
    """Publish rows, of each slot in their order. What follows a row that wasn't taken stays behind it.

    What follows a row that Pub/Sub refuses, or one of `refused`, goes on where it has another key. Of a refused row whose key is
    unknown, the slot's later rows all stay behind.
    """
    sent, by_slot = Sent(), dict[int, list[Row]]()
    for row in rows:
        by_slot.setdefault(row.slot, []).append(row)
    refused_keys: dict[int, dict[str | None, int]] = {slot: {} for slot in by_slot}
    for (slot, key), position in refused.items():
        refused_keys.setdefault(slot, {})[key] = position
    room, until = asyncio.Semaphore(MAX_REQUESTS), asyncio.get_running_loop().time() + TURN_SECONDS

    async def send_slot(slot: int, slot_rows: list[Row]) -> None:
        async with room:
            for request in in_requests(slot_rows, lambda row: row.size):
                if not await _send_request(topics, slot, request, sent, refused_keys[slot], until):
                    return

    async with asyncio.TaskGroup() as group:
        for slot, slot_rows in by_slot.items():
            group.create_task(send_slot(slot, slot_rows))
    return sent


async def _send_request(
    topics: Topics, slot: int, rows: Sequence[Row], sent: Sent, refused_keys: dict[str | None, int], until: float
) -> bool:
    """Whether the rows behind these may follow. None is sent from the time `until` of the event loop on."""
    if asyncio.get_running_loop().time() >= until:
        return False
    rows = _free(rows, sent, refused_keys)
    if not rows:
        return True
    try:
        await topics.publish(slot, rows, ATTEMPT_SECONDS)
    except RefusedError as refused:
        if len(rows) > 1:  # one by one, so that a refusal hits only its own row
            for row in rows:
                if not await _send_request(topics, slot, (row,), sent, refused_keys, until):
                    return False
        else:
            _refuse(rows[0], str(refused), sent, refused_keys)
    except NotTakenError as error:
        sent.waiting[slot] = error
        return False
    else:
        sent.published += [row.position for row in rows]
    return True


def _free(rows: Iterable[Row], sent: Sent, refused_keys: dict[str | None, int]) -> tuple[Row, ...]:
    """The rows of one slot that are behind no refused one."""
    free = []
    for row in rows:
        first = refused_keys.get(row.key, refused_keys.get(None))
        if first is not None and first < row.position:
            sent.behind[row.position] = first
        elif not row.attributes:
            _refuse(row, UNREADABLE, sent, refused_keys)
        else:
            free.append(row)
    return tuple(free)


def _refuse(row: Row, reason: str, sent: Sent, refused_keys: dict[str | None, int]) -> None:
    sent.refused[row.position] = reason
    refused_keys[row.key] = row.position

"""What tests of the outbox share: a fleet, a topic in memory that may fail, and a way to kill a relay between any two steps."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable

from consumer_kit import InThisThread
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event

from shardctl import Outbox, Write
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.outbox.metrics import OutboxMetrics
from shardctl.outbox.queue import LIMITS, Queue
from shardctl.outbox.relay import Relay
from shardctl.outbox.sending import NotTakenError, RefusedError
from shardctl.shard import databaseurl
from shardctl.shard.engine import open_engine

FLEET = fleet_from(
    parse(
        """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 3, topic_bits: 1}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, number: bigint}}
shards:
  - {name: s0, slots: 0-7}
""",
        "test",
    )
)


def order(key: str, number: int = 0) -> Write:
    return Write("order", {"order_id": key, "number": number})


def open_database(url: str) -> Engine:
    """As a relay opens it."""
    return open_engine(databaseurl.parse(url), LIMITS)


def outbox_in(engine: Engine) -> Outbox:
    """An outbox whose tables are there."""
    made = Outbox(FLEET)
    made.create(engine)
    return made


class Memory:
    """Topics in memory: all that was published, by slot. `refuses` says which keys can't be published."""

    def __init__(self, dice: random.Random | None = None, refuses: Callable[[str], bool] = lambda key: False) -> None:
        self.messages: defaultdict[int, list[tuple[str, str, bytes]]] = defaultdict(list)
        self.step = lambda: None
        self.refuses_row = lambda row: self._refuses(row.attributes["partition_key"])
        self.down: set[int] = set()
        self.copies_to: int | None = None  # a pipe, where another process is to know what was published
        self._dice, self._refuses = dice, refuses

    async def publish(self, slot, rows, timeout_seconds):
        assert timeout_seconds > 0
        self.step()
        await asyncio.sleep(0)
        failure = self._dice.random() if self._dice else 1.0
        if slot in self.down or failure < 0.1:
            raise NotTakenError("out of order")
        if any(map(self.refuses_row, rows)):
            raise RefusedError("never")
        self.messages[slot] += [
            (row.attributes["partition_key"], row.attributes["idempotency_key"], row.body) for row in rows
        ]
        if self.copies_to is not None:
            lines = [
                json.dumps([slot, key, name, body.decode()]) + "\n"
                for key, name, body in self.messages[slot][-len(rows) :]
            ]
            os.write(self.copies_to, "".join(lines).encode())
        self.step()
        if failure < 0.2:
            raise NotTakenError("it arrived, and nobody knows")

    def once(self) -> dict[str, list[bytes]]:
        """Bodies by routing key as an inbox lets them through: the first copy of each idempotency key."""
        seen, bodies = set(), defaultdict(list)
        for messages in self.messages.values():
            for key, idempotency_key, body in messages:
                if idempotency_key not in seen:
                    seen.add(idempotency_key)
                    bodies[key].append(body)
        return bodies


def relay_on(engine: Engine, topics: Memory, clock: Callable[[], float] = time.monotonic) -> Relay:
    return Relay(Queue(engine), topics, InThisThread(), OutboxMetrics(CollectorRegistry()), clock=clock)


def drain(engine: Engine, topics: Memory, patience_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic):
    async def work():
        return await relay_on(engine, topics, clock).drain(patience_seconds)

    return asyncio.run(work())


def killed_at(number: int, url: str, topics: Memory) -> bool:
    """Drain in a process that sends itself SIGKILL at the step of that number; whether it came to that.

    Steps are before and after each statement, each commit and each publication. `topics` has what was published.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        left = iter(range(number))

        def step(*_):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        topics.step, topics.copies_to = step, writing
        engine = open_database(url)
        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, name, step)
        try:
            drain(engine, topics)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as copies:
        for line in copies:
            slot, key, idempotency_key, body = json.loads(line)
            topics.messages[slot].append((key, idempotency_key, body.encode()))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

"""What a stranger sends costs time in proportion to its size: eight times the input takes no more than some eight times as long.

The processor time of this thread is compared with itself, so nothing here depends on how fast or how busy the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from consumer_kit import raw, write
from gateway_kit import fleet

from consumer.intake.push import request as pushed
from shardctl.errors import UsageError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.gateway import app, batches, fields, requests
from shardctl.gateway.auth import NoAuth
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.ratelimit import Buckets

TIMES = 8
MOST = 3 * TIMES  # a quadratic cost is TIMES ** 2
FLEET = fleet("{max_body_bytes: 9000000}")
JSON, LINES = (b"content-type", b"application/json"), (b"content-type", b"application/x-ndjson")


class NoTopics:
    async def publish(self, slot, messages, timeout_seconds):
        raise AssertionError("nothing here can be taken")


def seconds(work: Callable[[Any], None], made: Any) -> float:
    taken = []
    for _ in range(3):
        begun = time.thread_time()
        work(made)
        taken.append(time.thread_time() - begun)
    return min(taken)


def desk() -> GatewayContext:
    return GatewayContext(FLEET, NoTopics(), NoAuth(FLEET.gateway, Buckets(time.monotonic)))


def parts_of(parts):
    """The parts as an ASGI server hands them over."""
    left = iter(parts)

    async def receive():
        part = next(left, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    return receive


def ask(path, header, parts):
    """What the gateway answers to a request that it can't take."""
    events = []

    async def send(message):
        events.append(message)

    async def run():
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [header],
            "client": None,
        }
        await app.application(desk())(scope, parts_of(parts), send)

    asyncio.run(run())
    return events[0]["status"], b"".join(message.get("body", b"") for message in events[1:])


def refused(body):
    assert ask("/v1/writes/order", JSON, [body])[0] == 400


def refused_line(body):
    status, answer = ask("/v1/writes", LINES, [body])
    assert status == 200
    assert b'"status":400' in answer


def no_lines(parts):
    async def run():
        async for _ in batches.lines_of(parts_of(parts), 1 << 24, desk()):
            pass

    asyncio.run(run())


def no_query(text):
    with pytest.raises(fields.FieldError):
        requests.query_of({"query_string": text}, ("key",))


def no_push(body):
    with pytest.raises(pushed.BadPushError):
        pushed.read("a", "shop-s0-g1", body, {}, ())


def no_row(body):
    delivery = raw("customer", body, "c")
    with contextlib.suppress(Exception):
        write("customer", body, key="c")
    assert delivery.body == {}


def no_fleet(text):
    with pytest.raises(UsageError):
        fleet_from(parse(text))


def named_twice(names):
    return b"{%b, %b}" % (b", ".join(b'"a%d": 1' % number for number in range(names)), b'"a%d": 1' % (names - 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "make", "size"),
    [
        (refused, named_twice, 2_000),
        (refused, lambda size: orjson.dumps({f"a{number}": 1 for number in range(size)}), 4_000),
        (refused, lambda size: b'{"order_id": "o", "amount": "%b"}' % (b"1" * size + b"x"), 50_000),
        (refused, lambda size: b'{"order_id": "o", "x": 0.%b}' % (b"1" * size), 50_000),
        (refused, lambda size: b"[\n" + b"1,\n" * size + b"x", 50_000),
        (refused, lambda size: b'{"a": %b%b}' % (b"[" * size, b"]" * size), 20_000),
        (refused_line, lambda size: b'{"type": "order", "body": %b}' % named_twice(size), 2_000),
        (refused_line, lambda size: b'{"type": "order", "body": {}}\n' * size, 200),
        (no_lines, lambda size: [b"x" * 256] * size, 500),
        (no_lines, lambda size: [b"x\n" * 100] * size, 200),
        (no_query, lambda size: b"&".join(b"a%d=1" % number for number in range(size)), 2_000),
        (no_query, lambda size: b"other=" + b"%41" * size, 5_000),
        (no_push, lambda size: orjson.dumps({"message": {"attributes": {f"a{n}": "x" for n in range(size)}}}), 5_000),
        (no_push, lambda size: orjson.dumps({"message": {"messageId": "1", "data": "QUFB" * size + "="}}), 20_000),
        (no_row, named_twice, 2_000),
        (no_row, lambda size: orjson.dumps({f"a{number}": 1 for number in range(size)}), 4_000),
        (no_fleet, lambda size: "labels:\n" + "".join(f"  x{number}: 3\n" for number in range(size)), 1_000),
        (no_fleet, lambda size: "a: b\n" * size + "\t- x", 4_000),
    ],
    ids=[
        "a name twice",
        "unknown names",
        "digits as text",
        "digits",
        "not JSON",
        "deep",
        "a name twice in a line",
        "refused lines",
        "a line in small parts",
        "short lines",
        "parameters",
        "percent-encoded",
        "attributes of a push",
        "data of a push",
        "a name twice at the consumer",
        "unknown columns at the consumer",
        "faults of a file",
        "a tab in a file",
    ],
)
def test_time_grows_with_the_size_alone(work, make, size):
    once, more = seconds(work, make(size)), seconds(work, make(TIMES * size))
    assert more < MOST * max(once, 0.001)

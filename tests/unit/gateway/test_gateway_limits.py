"""Token buckets, and lines of a body within bounds."""

import asyncio
import time

import orjson
import pytest
from gateway_kit import fleet
from patience import PATIENCE_SECONDS

from shardctl.gateway import batches, requests
from shardctl.gateway.app import application
from shardctl.gateway.auth import NoAuth
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.problems import Problem
from shardctl.gateway.ratelimit import MAX_CLIENTS, Bucket, Buckets


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_bucket_holds_a_second_and_fills_evenly():
    clock = Clock()
    bucket = Bucket(10, clock)
    assert sum(bucket.take() == 0 for _ in range(20)) == 10
    assert bucket.take() == pytest.approx(0.1)
    clock.now = 0.35
    assert sum(bucket.take() == 0 for _ in range(20)) == 3
    clock.now = 100
    assert sum(bucket.take() == 0 for _ in range(20)) == 10


def test_one_write_a_second_can_be_taken():
    clock = Clock()
    bucket = Bucket(1, clock)
    assert bucket.take() == 0
    assert bucket.take() == pytest.approx(1)
    clock.now = 1.0
    assert bucket.take() == 0


def test_clients_have_buckets_of_their_own_and_are_forgotten_in_the_end():
    buckets = Buckets(Clock())
    mine = buckets.of("me", 1)
    assert buckets.of("me", 1) is mine
    assert buckets.of("you", 1) is not mine
    assert buckets.of("free", None) is None
    for number in range(MAX_CLIENTS):
        buckets.of(str(number), 1)
    assert buckets.of("me", 1) is not mine


def lines(parts, most=10):
    desk = GatewayContext(fleet(), None, NoAuth(fleet().gateway, Buckets(Clock())))
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]]
    events.append({"type": "http.request", "body": parts[-1], "more_body": False})

    async def receive():
        return events.pop(0)

    async def run():
        return [line async for chunk in batches.lines_of(receive, most, desk) for line in chunk]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([b"a\nbc\n"], [b"a", b"bc", b""]),
        ([b"a", b"b\nc", b"", b"d"], [b"ab", b"cd"]),
        ([b""], [b""]),
        ([b"x" * 11 + b"\na"], [None, b"a"]),
        ([b"x" * 6, b"x" * 6, b"x" * 6, b"x\na\n", b"b"], [None, b"a", b"b"]),
        ([b"x" * 6, b"x" * 6], [None]),
        ([b"x" * 10 + b"\n", b"y" * 10], [b"x" * 10, b"y" * 10]),
    ],
    ids=["whole", "parts", "empty", "long", "long in parts", "long at the end", "just fits"],
)
def test_lines_are_cut_out_of_any_parts(parts, expected):
    assert lines(parts) == expected


def test_a_body_that_does_not_begin_is_waited_for_no_longer_than_one_that_stops(monkeypatch):
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)
    desk = GatewayContext(fleet(), None, NoAuth(fleet().gateway, Buckets(Clock())))

    async def run():
        headers = requests.Headers({"headers": [(b"content-length", b"10")]})
        with pytest.raises(Problem, match="didn't come") as refusal:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await requests.body_of(asyncio.Event().wait, headers, 1_000, desk.outbox)
        assert refusal.value.status == 408

    asyncio.run(run())


class Prompt:
    """Topics that take everything at once."""

    async def publish(self, slot, messages, timeout_seconds):
        from google.pubsub_v1 import PublishRequest

        return ["id"] * len(PublishRequest.pb().FromString(messages).messages)


def served(parts, send, *, rate="{}"):
    """Run one batch of these parts; `send` is the client's side of the answer."""
    settings = fleet(rate)
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    events.append({"type": "http.request", "body": b"", "more_body": False})
    read = []

    async def receive():
        read.append(1)
        return events.pop(0)

    async def run():
        loop = asyncio.get_running_loop()
        desk = GatewayContext(settings, Prompt(), NoAuth(settings.gateway, Buckets(loop.time)), clock=loop.time)
        scope = {"headers": [(b"content-type", b"application/x-ndjson")], "query_string": b"", "client": ("a", 1)}
        await asyncio.wait_for(batches.Batches(desk)(scope, receive, lambda event: send(event, read)), PATIENCE_SECONDS)

    asyncio.run(run())


LINE = b'{"type":"order","body":{"order_id":"a"}}\n'


def test_reading_goes_on_while_the_client_fetches_nothing():
    answered = []

    async def send(event, read):
        while len(read) < 4:  # noqa: ASYNC110 - a client that sends its whole body first
            await asyncio.sleep(0)
        answered.append(event.get("body", b""))

    served([LINE * 3, LINE * 3, LINE * 3], send)
    assert b"".join(answered).count(b'"status":202') == 9


@pytest.mark.slow
def test_results_that_nobody_fetches_stop_the_reading(monkeypatch):
    monkeypatch.setattr(batches, "MAX_RESULTS_HELD", 10)
    seen = []

    async def send(event, read):
        await asyncio.sleep(0.05)  # long enough to read it all, were there no bound
        seen.append(len(read))

    served([LINE * 10 for _ in range(20)], send)
    assert seen[0] < 5, "results would pile up without end"
    assert seen[-1] == 21


@pytest.mark.slow
def test_a_batch_is_read_no_faster_than_its_client_may_write():
    answered = []

    async def send(event, read):
        answered.append(time.monotonic())

    begun = time.monotonic()
    served([LINE * 130], send, rate="{rate_limit: 100}")
    assert answered[-1] - begun > 0.2, "a hundred at once, and the rest at the client's rate"


class NoTopics:
    async def publish(self, slot, messages, timeout_seconds):
        raise AssertionError("no body here is ever whole")


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/writes/order", b"application/json"), ("/v1/writes", b"application/x-ndjson")]
)
def test_bodies_under_way_count_as_in_flight_from_their_first_part(path, kind):
    """One of 300 KB is read, whatever else; a second finds no room in a quarter of 1 MiB, and what it brought is let go."""
    settings = fleet("{max_in_flight_bytes: 1048576, max_body_bytes: 500000}")

    async def run():
        desk = GatewayContext(settings, NoTopics(), NoAuth(settings.gateway, Buckets(Clock())))
        gateway = application(desk)
        rest, answers = asyncio.Event(), []

        async def ask(wait):
            parts = [b"{" + b" " * 150_000, b" " * 150_000]

            async def receive():
                if parts:
                    return {"type": "http.request", "body": parts.pop(), "more_body": True}
                await wait.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                answers.append(message)

            scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "client": None}
            await gateway({**scope, "headers": [(b"content-type", kind)]}, receive, send)

        first = asyncio.create_task(ask(rest))
        while desk.outbox.bytes < 300_000:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        await ask(asyncio.Event())
        bytes_held = desk.outbox.bytes
        rest.set()
        await first
        return (
            b"".join(orjson.dumps(answer.get("status", str(answer.get("body")))) for answer in answers),
            bytes_held,
            desk,
        )

    answered, bytes_held, desk = asyncio.run(run())
    assert b"429" in answered
    assert bytes_held == 300_001
    assert (desk.outbox.bytes, desk.outbox.read_bytes) == (0, 0)


@pytest.mark.slow
def test_there_are_only_so_many_batches_at_once():
    async def run():
        desk = GatewayContext(fleet(), NoTopics(), NoAuth(fleet().gateway, Buckets(Clock())))
        gateway, end, statuses = application(desk), asyncio.Event(), []

        async def receive():
            await end.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/v1/writes", "query_string": b"", "client": None}
        scope["headers"] = [(b"content-type", b"application/x-ndjson")]
        tasks = [asyncio.create_task(gateway(scope, receive, send)) for _ in range(batches.MAX_BATCHES + 1)]
        while not statuses:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        end.set()
        await asyncio.gather(*tasks)
        return statuses[0]

    assert asyncio.run(run()) == 429

"""The outbox keeps each slot's order, fills requests under load, and never lets a write overtake a failed one unseen."""

import asyncio

import pytest
from gateway_kit import fleet
from google.pubsub_v1 import PublishRequest
from patience import PATIENCE_SECONDS

from shardctl.gateway.app import application
from shardctl.gateway.auth import NoAuth
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.metrics import Metrics
from shardctl.gateway.publishing import MAX_REQUEST_WRITES, MAX_REQUESTS, Outbox
from shardctl.gateway.pubsub import NotTakenError, PublishRefusedError, TransientError
from shardctl.gateway.ratelimit import Buckets


class Topics:
    """Takes one-byte messages; answers when a test asks. `faults` are raised first, one a request."""

    def __init__(self, faults=(), *, blocked=False):
        self.taken, self.requests = [], []
        self.faults = list(faults)
        self.go = asyncio.Event()
        if not blocked:
            self.go.set()

    async def publish(self, slot, messages, timeout_seconds):
        self.requests.append((slot, messages))
        await self.go.wait()
        await asyncio.sleep(0)
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        if b"!" in messages:
            raise PublishRefusedError("no such thing")
        self.taken += [(slot, text) for text in messages.decode()]
        return [f"id-{text}" for text in messages.decode()]


class Receipts:
    def __init__(self):
        self.ids, self.errors, self.settled = {}, {}, asyncio.Event()
        self.wanted = 0

    def settle(self, number, message_id, error):
        (self.errors if error else self.ids)[number] = error or message_id
        if len(self.ids) + len(self.errors) == self.wanted:
            self.settled.set()

    async def all(self, number):
        self.wanted = number
        self.settled.clear()
        if len(self.ids) + len(self.errors) < number:
            await self.settled.wait()


def outbox(topics, *, max_writes=100_000, max_bytes=1 << 30, give_up=5.0):
    clock = asyncio.get_running_loop().time
    return Outbox(
        topics, Metrics(["t"]), max_writes=max_writes, max_bytes=max_bytes, give_up_after_seconds=give_up, clock=clock
    )


def put(box, receipts, slot, text, first=0):
    for number, character in enumerate(text, first):
        box.put(slot, character.encode(), receipts, number)


def test_a_lone_write_goes_at_once():
    async def run():
        topics, receipts = Topics(), Receipts()
        put(outbox(topics), receipts, 3, "a")
        await receipts.all(1)
        assert receipts.ids == {0: "id-a"}
        assert topics.requests == [(3, b"a")]

    asyncio.run(run())


def test_what_comes_while_a_request_is_under_way_goes_with_the_next():
    async def run():
        topics, receipts = Topics(blocked=True), Receipts()
        box = outbox(topics)
        put(box, receipts, 3, "a")
        await asyncio.sleep(0.01)
        put(box, receipts, 3, "bcd", 1)
        await asyncio.sleep(0.01)
        assert topics.requests == [(3, b"a")], "one request of a slot at a time keeps its order"
        topics.go.set()
        await receipts.all(4)
        assert topics.requests == [(3, b"a"), (3, b"bcd")]
        assert [receipts.ids[number] for number in range(4)] == ["id-a", "id-b", "id-c", "id-d"]

    asyncio.run(run())


def test_requests_are_bounded_in_number_and_in_size():
    async def run():
        topics, receipts = Topics(blocked=True), Receipts()
        box = outbox(topics)
        for slot in range(MAX_REQUESTS + 10):
            put(box, receipts, slot, "a" * (MAX_REQUEST_WRITES + 1 if slot == 0 else 1), slot * 10_000)
        await asyncio.sleep(0.01)
        assert len(topics.requests) == MAX_REQUESTS
        topics.go.set()
        await receipts.all(MAX_REQUESTS + 10 + MAX_REQUEST_WRITES)
        assert max(len(messages) for _, messages in topics.requests) == MAX_REQUEST_WRITES
        assert (box.writes, box.bytes) == (0, 0)

    asyncio.run(run())


def test_a_fault_that_passes_is_tried_again_in_order():
    async def run():
        topics, receipts = Topics([TransientError("away"), TransientError("away")]), Receipts()
        box = outbox(topics)
        put(box, receipts, 3, "ab")
        await receipts.all(2)
        assert topics.taken == [(3, "a"), (3, "b")]
        assert topics.requests == [(3, b"ab")] * 3

    asyncio.run(run())


def test_nothing_overtakes_a_failed_write():
    async def run():
        topics, receipts = Topics([NotTakenError("denied")], blocked=True), Receipts()
        box = outbox(topics)
        put(box, receipts, 3, "a")
        await asyncio.sleep(0.01)
        put(box, receipts, 3, "bc", 1)
        put(box, receipts, 4, "z", 9)
        topics.go.set()
        await receipts.all(4)
        assert topics.taken == [(4, "z")], "what waited behind the failed one must not go out"
        assert str(receipts.errors[0]) == "denied"
        assert not receipts.errors[1].sent
        put(box, receipts, 3, "d", 20)
        await receipts.all(5)
        assert topics.taken[-1] == (3, "d"), "the slot goes on for who comes later and knows"

    asyncio.run(run())


def test_a_write_that_is_refused_takes_no_other_along():
    async def run():
        topics, receipts = Topics(), Receipts()
        put(outbox(topics), receipts, 3, "a!b")
        await receipts.all(3)
        assert topics.taken == [(3, "a"), (3, "b")]
        assert isinstance(receipts.errors[1], PublishRefusedError)

    asyncio.run(run())


@pytest.mark.slow
def test_trying_again_ends():
    async def run():
        topics, receipts = Topics([TransientError("away")] * 100), Receipts()
        put(outbox(topics, give_up=0.3), receipts, 3, "ab")
        await receipts.all(2)
        assert topics.taken == []
        assert {str(error) for error in receipts.errors.values()} == {"away"}

    asyncio.run(run())


def test_room_is_bounded_by_number_and_bytes():
    async def run():
        topics, receipts = Topics(blocked=True), Receipts()
        box = outbox(topics, max_writes=4, max_bytes=100)
        assert box.has_room(100)
        assert not box.has_room(101)
        put(box, receipts, 3, "abc")
        assert box.has_room(97)
        assert not box.has_room(98)
        waiting = asyncio.create_task(box.room(1))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "batches leave room for single writes"
        topics.go.set()
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    asyncio.run(run())


def test_a_batch_that_is_gone_leaves_room_to_others():
    async def run():
        topics, receipts = Topics(blocked=True), Receipts()
        box = outbox(topics, max_writes=1)
        put(box, receipts, 3, "a")
        gone, stays = (asyncio.create_task(box.room(1)) for _ in range(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        topics.go.set()
        await asyncio.wait_for(stays, PATIENCE_SECONDS)
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())


class Counting:
    """Topics that count what each request carries, and answer once `go` is set."""

    def __init__(self):
        self.writes, self.go, self.begun = [], asyncio.Event(), asyncio.Event()

    async def publish(self, slot, messages, timeout_seconds):
        self.writes.append(len(PublishRequest.pb().FromString(messages).messages))
        self.begun.set()
        await self.go.wait()
        return ["id"] * self.writes[-1]


async def post(app, order_id):
    answers, body = [], b'{"order_id":"%b"}' % order_id.encode()

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event):
        answers.append(event.get("status"))

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/writes/order", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return answers[0]


def test_concurrent_requests_of_one_slot_share_publish_requests():
    """A lone write takes one, 50 that come while it is in flight take one more, and 200 at once take one."""

    async def run():
        topics, settings = Counting(), fleet()
        app = application(GatewayContext(settings, topics, NoAuth(settings.gateway, Buckets(lambda: 0.0))))
        lone = asyncio.create_task(post(app, "k"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await topics.begun.wait()
            behind = [asyncio.create_task(post(app, "k")) for _ in range(50)]
            await asyncio.sleep(0)  # each of them has put its write
            topics.go.set()
            assert {await lone, *await asyncio.gather(*behind)} == {202}
            assert topics.writes == [1, 50]
            assert set(await asyncio.gather(*(post(app, "k") for _ in range(200)))) == {202}
        assert topics.writes == [1, 50, 200]

    asyncio.run(run())


def test_nothing_overtakes_a_write_that_fails_after_a_refusal_of_its_request():
    """The refused request's writes go one by one; what came meanwhile waits behind all of them."""

    async def run():
        topics, receipts = Topics([None, NotTakenError("denied")], blocked=True), Receipts()
        box = outbox(topics)
        put(box, receipts, 3, "a!b")
        await asyncio.sleep(0.01)
        put(box, receipts, 3, "c", 3)
        topics.go.set()
        await receipts.all(4)
        assert topics.taken == []
        assert str(receipts.errors[0]) == "denied"
        assert [receipts.errors[number].sent for number in (1, 2, 3)] == [False] * 3
        assert (box.writes, box.bytes) == (0, 0)

    asyncio.run(run())


def test_a_write_that_may_have_arrived_is_not_called_unsent():
    """Its first try has no answer, and the second is refused because of the gateway's rights."""

    async def run():
        topics, receipts = Topics([TransientError("away"), NotTakenError("denied", sent=False)]), Receipts()
        put(outbox(topics), receipts, 3, "a")
        await receipts.all(1)
        assert receipts.errors[0].sent
        topics.faults = [NotTakenError("denied", sent=False)]
        put(outbox(topics), receipts, 3, "b", 1)
        await receipts.all(2)
        assert not receipts.errors[1].sent

    asyncio.run(run())

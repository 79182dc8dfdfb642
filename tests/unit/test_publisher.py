"""The publisher over a client that fails on demand: nothing may overtake, and nothing may go missing."""

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from fleets import fleet
from google.api_core import exceptions as api
from patience import PATIENCE_SECONDS

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.publisher import Publisher, PublishError, SlotHeldError
from shardctl.wire.message import InvalidWriteError, Write

FLEET = fleet(["0-511", "512-1023"], topic_bits=1)


class FakeClient:
    """Keeps order as the real client does: after a failure a key is paused, and what waits behind fails with it."""

    def __init__(self, *, at_once=True):
        self.at_once = at_once
        self.log, self.waiting, self.paused, self.resumed = [], [], set(), []
        self.failures = {}  # body → errors, one for each time it is sent
        self.stopped = 0

    def publish(self, topic, data, ordering_key="", **attributes):
        future = Future()
        if ordering_key in self.paused:
            future.set_exception(RuntimeError("paused"))
            return future
        self.waiting.append((topic, data, ordering_key, attributes, future))
        if self.at_once:
            self.settle()
        return future

    def settle(self):
        """One after another; like the real client, it fails what waits behind a failure before the failed one itself."""
        waiting, self.waiting = self.waiting, []
        failed = []
        for topic, data, key, attributes, future in waiting:
            errors = self.failures.get(data, [])
            if key in self.paused:
                future.set_exception(RuntimeError("an earlier one failed"))
            elif errors:
                self.paused.add(key)
                failed.append((future, errors.pop(0)))
            else:
                self.log.append((topic, data, key, attributes))
                future.set_result(f"m{len(self.log)}")
        for future, error in failed:
            future.set_exception(error)

    def resume_publish(self, topic, ordering_key):
        if ordering_key not in self.paused:
            raise RuntimeError("Ordering key is not paused.")
        self.resumed.append((topic, ordering_key))
        self.paused.discard(ordering_key)

    def stop(self):
        self.stopped += 1

    @property
    def bodies(self):
        return [data for _, data, _, _ in self.log]


def write(key, amount=0):
    return Write("a", {"id": key, "amount": amount})


def body(key, amount):
    return f'{{"id":"{key}","amount":{amount}}}'.encode()


@pytest.fixture
def client():
    return FakeClient()


@pytest.fixture
def publisher(client):
    return Publisher(FLEET, client, sleep=lambda _: None)


def test_a_write_goes_to_its_topic_with_its_key(client, publisher):
    assert publisher.publish(write("k")).result() == "m1"
    ((topic, data, key, attributes),) = client.log
    slot = slot_of("k", 10)
    assert topic == f"projects/my-project/topics/data-writes-{slot >> 9}"
    assert (data, key) == (body("k", 0), digits_of(slot, 10))
    assert attributes["slot"] == key


def test_each_write_has_a_key_of_its_own_against_doubling(client, publisher):
    publisher.publish(write("k"))
    publisher.publish(write("k"))
    publisher.publish(replace(write("k"), idempotency_key="mine"))
    keys = [attributes["idempotency_key"] for _, _, _, attributes in client.log]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_a_write_on_its_way_cant_be_cancelled(client, publisher, caplog):
    """Or a caller that gives up, such as asyncio's `wait_for`, would take it for one that isn't sent."""
    client.at_once = False
    sent = publisher.publish(write("k"))
    assert not sent.cancel()
    client.settle()
    assert (sent.result(0), caplog.text) == ("m1", "")


def test_what_cant_be_a_write_is_raised_at_once(client, publisher):
    with pytest.raises(InvalidWriteError):
        publisher.publish(Write("zz", {}))
    assert publisher.flush(0)


def test_after_a_failure_nothing_overtakes(client, publisher):
    client.at_once = False
    client.failures[body("k", 1)] = [api.InvalidArgument("no")]
    first, second, third = (publisher.publish(write("k", n)) for n in (1, 2, 3))
    other = publisher.publish(write("other"))
    client.settle()
    later = publisher.publish(write("k", 4))
    assert isinstance(first.exception(), PublishError)
    assert not isinstance(first.exception(), SlotHeldError)
    assert all(isinstance(future.exception(), SlotHeldError) for future in (second, third, later))
    assert other.result() == "m1"
    publisher.resume(first.exception().slot)
    client.at_once = True
    for n in (2, 3, 4):
        publisher.publish(write("k", n)).result()
    assert client.bodies == [body("other", 0), *(body("k", n) for n in (2, 3, 4))]
    assert len(client.resumed) == 1


def test_resume_of_a_slot_that_isnt_held_does_nothing(client, publisher):
    publisher.resume(3)
    assert client.resumed == []


def test_two_threads_may_resume_one_slot():
    """The second waits for the first, and then has nothing left to do."""
    resuming, go_on = threading.Semaphore(0), threading.Event()

    class Slow(FakeClient):
        def resume_publish(self, topic, ordering_key):
            resuming.release()
            assert go_on.wait(PATIENCE_SECONDS)
            super().resume_publish(topic, ordering_key)

    client = Slow()
    publisher = Publisher(FLEET, client)
    client.failures = {body("k", 1): [api.Aborted("x")]}
    slot = publisher.publish(write("k", 1)).exception().slot
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(publisher.resume, slot)
        assert resuming.acquire(timeout=PATIENCE_SECONDS)
        second = threads.submit(publisher.resume, slot)
        with contextlib.suppress(TimeoutError):
            second.result(0.05)
        go_on.set()
        first.result(PATIENCE_SECONDS)
        second.result(PATIENCE_SECONDS)
    assert len(client.resumed) == 1
    assert publisher.publish(write("k", 2)).result(PATIENCE_SECONDS)


def test_a_slot_whose_resume_fails_stays_held(client, publisher):
    client.failures = {body("k", 1): [api.Aborted("x")]}
    slot = publisher.publish(write("k", 1)).exception().slot
    resume, client.resume_publish = client.resume_publish, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        publisher.resume(slot)
    assert isinstance(publisher.publish(write("k", 2)).exception(), SlotHeldError)
    client.resume_publish = resume
    publisher.resume(slot)
    assert publisher.publish(write("k", 2)).result()


def test_resume_waits_for_what_is_on_its_way(client, publisher):
    """Otherwise a retried write could come before one that the client hasn't failed yet."""
    client.failures[body("k", 1)] = [api.InvalidArgument("no")]
    sent = []
    client.publish = lambda *_, **__: (sent.append(future := Future()), future)[1]
    first, second = publisher.publish(write("k", 1)), publisher.publish(write("k", 2))
    sent[0].set_exception(api.InvalidArgument("no"))
    client.paused.add(digits_of(first.exception().slot, 10))
    thread = threading.Thread(target=publisher.resume, args=[first.exception().slot])
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    sent[1].set_exception(RuntimeError("an earlier one failed"))
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(second.exception(), SlotHeldError)


@pytest.mark.parametrize(
    "errors",
    [
        [api.ServiceUnavailable("away")],
        [api.DeadlineExceeded("slow"), api.Aborted("again"), api.Unknown("still")],
    ],
    ids=["once", "thrice"],
)
def test_publish_all_retries_in_order(client, publisher, errors):
    client.failures[body("k", 1)] = list(errors)
    outcomes = list(publisher.publish_all(write("k", n) for n in range(4)))
    assert [outcome.refused for outcome in outcomes] == [None] * 4
    assert client.bodies == [body("k", n) for n in range(4)]


def test_publish_all_keeps_the_idempotency_key_through_retries(client, publisher):
    client.failures[body("k", 1)] = [api.ServiceUnavailable("away")]
    (outcome,) = publisher.publish_all([write("k", 1)])
    assert client.log[0][3]["idempotency_key"] == outcome.write.idempotency_key


def test_publish_all_refuses_the_write_at_fault_alone(client):
    """A batch fails as one: each of its writes is tried by itself before it is refused."""
    client.at_once = False
    client.failures[body("k", 1)] = [api.InvalidArgument("bad"), api.InvalidArgument("bad")]
    publisher = Publisher(FLEET, client, sleep=lambda _: None)

    def writes():
        for n in range(4):
            yield write("k", n)
        yield Write("zz", {})
        client.settle()
        client.at_once = True

    outcomes = list(publisher.publish_all(writes()))
    assert [outcome.refused is None for outcome in outcomes] == [True, False, True, True, False]
    assert "bad" in outcomes[1].refused
    assert "message_types" in outcomes[4].refused
    assert client.bodies == [body("k", n) for n in (0, 2, 3)]


def test_publish_all_gives_up_when_nothing_gets_through(client):
    client.failures[body("k", 1)] = [api.ServiceUnavailable("away")] * 1000
    publisher = Publisher(FLEET, client, give_up_after_seconds=30, sleep=lambda _: None)
    with pytest.raises(PublishError, match="away"):
        list(publisher.publish_all(write("k", n) for n in range(4)))
    assert client.bodies == [body("k", 0)]


def test_publish_all_does_not_retry_what_the_client_has_given_up(client, publisher):
    client.failures[body("k", 0)] = [api.RetryError("away for a minute", None)]
    with pytest.raises(PublishError, match="away for a minute"):
        list(publisher.publish_all(write("k", n) for n in range(4)))
    assert client.bodies == []


@pytest.mark.parametrize(
    "error", [api.NotFound("no topic"), api.PermissionDenied("you may not")], ids=["topic", "right"]
)
def test_publish_all_stops_at_what_no_retry_fixes(client, publisher, error):
    client.failures[body("k", 0)] = [error] * 10
    with pytest.raises(PublishError, match=error.message):
        list(publisher.publish_all(write("k", n) for n in range(4)))
    assert client.bodies == []


def test_close_waits_and_stops_once(client, publisher):
    with publisher:
        publisher.publish(write("k"))
    publisher.close()
    assert client.stopped == 1
    with pytest.raises(ShardctlError, match="closed"):
        publisher.publish(write("k"))


def test_flush_reports_what_is_left(client, publisher):
    client.at_once = False
    publisher.publish(write("k"))
    assert not publisher.flush(0)
    client.settle()
    assert publisher.flush(0)

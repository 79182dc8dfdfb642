"""A publisher's writes, waited for."""

from concurrent.futures import Future
from datetime import timedelta

import pytest

from shardctl import Publisher, Write
from shardctl.errors import UsageError
from shardctl.outcomes.effect import State
from shardctl.publisher import PublishError


class Client:
    """Takes each write when a test says so."""

    def __init__(self):
        self.sent = []

    def publish(self, topic, data, ordering_key="", **attributes):
        self.sent.append(Future())
        return self.sent[-1]

    def resume_publish(self, topic, ordering_key): ...
    def stop(self): ...


WRITE = Write("order", {"order_id": "o-1", "amount": 1}, idempotency_key="i-1")
NOW, SOON = timedelta(0), timedelta(seconds=0.05)


def test_a_write_is_waited_for_once_pubsub_has_it(inboxes):
    client = Client()
    publisher = Publisher(inboxes.fleet, client, databases=inboxes.engines)
    publication = publisher.publish(WRITE)
    with pytest.raises(TimeoutError):
        publication.applied(SOON)
    client.sent[0].set_result("m-1")
    assert publication.result() == "m-1"
    assert publication.applied(NOW).state is State.NOT_SEEN
    assert not publication.applied(SOON)
    inboxes.settle(inboxes.sought(caller="", body=b'{"order_id":"o-1","amount":1}'))
    assert publication.applied(timedelta(minutes=1)).state is State.APPLIED


def test_a_write_that_pubsub_refused_is_no_effect(inboxes):
    client = Client()
    publication = Publisher(inboxes.fleet, client, databases=inboxes.engines).publish(WRITE)
    client.sent[0].set_exception(ValueError("no"))
    with pytest.raises(PublishError):
        publication.applied(SOON)


def test_a_publisher_without_databases_says_what_to_give(inboxes):
    client = Client()
    publication = Publisher(inboxes.fleet, client).publish(WRITE)
    client.sent[0].set_result("m-1")
    with pytest.raises(UsageError, match="databases="):
        publication.applied(SOON)

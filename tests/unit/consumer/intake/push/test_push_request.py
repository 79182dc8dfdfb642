"""Push requests as Pub/Sub writes them, and everything that isn't one."""

from __future__ import annotations

import base64
import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.intake.push.request import BadPushError, read

NAMES = ("slot", "partition_key", "Kind")
MESSAGE = {
    "data": base64.b64encode(b'{"a": 1}').decode(),
    "attributes": {"slot": "0101", "Kind": "order", "ключ": "значение"},
    "messageId": "2070443601311540",
    "message_id": "2070443601311540",
    "publishTime": "2021-02-26T19:13:55.749Z",
    "publish_time": "2021-02-26T19:13:55.749Z",
    "orderingKey": "0101",
}
ENVELOPE = {"message": MESSAGE, "subscription": "projects/p/subscriptions/s-g1", "deliveryAttempt": 3}


def wrapped(envelope=None, body=None):
    return read("a1", "s-g1", orjson.dumps(envelope) if body is None else body, {}, NAMES)


def unwrapped(body=b"x", **headers):
    given_ = {
        "x-goog-pubsub-message-id": "2070443601311540",
        "x-goog-pubsub-publish-time": "2021-02-26T19:13:55.749Z",
        "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s-g1",
        "x-goog-pubsub-ordering-key": "0101",
    }
    return read("a1", "s-g1", body, {**given_, **{name.replace("__", "-"): v for name, v in headers.items()}}, NAMES)


def test_a_wrapped_message_is_as_a_pull_would_have_given_it():
    received = wrapped(ENVELOPE)
    message = received.message
    assert (received.ack_id, received.delivery_attempt) == ("a1", 3)
    assert (message.data, message.message_id, message.ordering_key) == (b'{"a": 1}', "2070443601311540", "0101")
    assert dict(message.attributes) == MESSAGE["attributes"]
    assert (message.publish_time.seconds, message.publish_time.nanos) == (1614366835, 749_000_000)


def test_what_may_be_left_out_may_be():
    small = {"messageId": "1", "publishTime": "2021-02-26T19:13:55Z"}
    received = wrapped({"message": small})
    assert (received.message.data, dict(received.message.attributes), received.delivery_attempt) == (b"", {}, 0)


def test_an_unwrapped_message_is_the_body_and_its_headers():
    received = unwrapped(
        b"\x00raw",
        slot="0101", kind="order", colour="red", content__type="text/plain", authorization="Bearer secret", host="h",
        x__forwarded__for="10.0.0.1", cookie="c",
    )  # fmt: skip
    message = received.message
    assert (message.data, message.message_id, message.ordering_key) == (b"\x00raw", "2070443601311540", "0101")
    # By the names as the file writes them, and without what isn't the message's, a token above all.
    assert dict(message.attributes) == {"slot": "0101", "Kind": "order", "colour": "red"}
    assert message.publish_time.nanos == 749_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"message": None}, "no `message`", id="no message"),
        pytest.param({"message": "x"}, "no `message`", id="message of a kind"),
        pytest.param({"subscription": "projects/p/subscriptions/s-g2"}, "another subscription", id="another's"),
        pytest.param({"subscription": 1}, "another subscription", id="no name"),
        pytest.param({"deliveryAttempt": "x"}, "deliveryAttempt", id="attempt"),
        pytest.param({"deliveryAttempt": 1 << 40}, "deliveryAttempt", id="many attempts"),
        pytest.param({"message": {**MESSAGE, "data": "%%"}}, "base64", id="data"),
        pytest.param({"message": {**MESSAGE, "data": 1}}, "base64", id="data of a kind"),
        pytest.param({"message": {**MESSAGE, "attributes": {"a": 1}}}, "attributes", id="attribute"),
        pytest.param({"message": {**MESSAGE, "attributes": []}}, None, id="no attributes"),
        pytest.param({"message": {**MESSAGE, "attributes": ["a"]}}, "attributes", id="attributes of a kind"),
        pytest.param({"message": {**MESSAGE, "messageId": ""}}, "messageId", id="no id"),
        pytest.param({"message": {**MESSAGE, "publishTime": "yesterday"}}, "can't be read", id="time"),
        pytest.param({"message": {**MESSAGE, "orderingKey": 7}}, "can't be read", id="ordering key"),
    ],
)
def test_what_isnt_a_push_is_refused_with_a_reason(change, message):
    if message is None:
        wrapped({**ENVELOPE, **change})
        return
    with pytest.raises(BadPushError, match=message):
        wrapped({**ENVELOPE, **change})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"message": {"messageId": "\\ud800"}}'])
def test_a_body_that_is_nothing_is_refused(body):
    with pytest.raises(BadPushError):
        wrapped(body=body)


def test_an_unwrapped_message_for_another_subscription_is_refused():
    with pytest.raises(BadPushError, match="another subscription"):
        unwrapped(**{"x-goog-pubsub-subscription-name": "projects/p/subscriptions/s-g2"})
    with pytest.raises(BadPushError, match="can't be read"):
        unwrapped(**{"x-goog-pubsub-publish-time": ""})


_JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*MESSAGE, *ENVELOPE]), inner, max_size=4))  # fmt: skip  # noqa: E501


@pytest.mark.slow
@given(_JSON | st.fixed_dictionaries({"message": st.fixed_dictionaries(dict.fromkeys(MESSAGE, _JSON))}))
def test_no_json_breaks_the_reading(value):
    """Whatever comes is a message or a refusal."""
    with contextlib.suppress(BadPushError, orjson.JSONEncodeError):
        wrapped(body=orjson.dumps(value))


@pytest.mark.parametrize("value", ["o-1", "Zürich", "東京 🗼", ""])
def test_an_unwrapped_attribute_is_utf_8(value):
    """An HTTP server gives a header's bytes as Latin-1: a routing key read so would be another one, of another slot."""
    message = unwrapped(colour=value.encode().decode("latin-1")).message
    assert message.attributes["colour"] == value


def test_a_header_that_is_no_utf_8_stays_as_it_came():
    assert unwrapped(colour="Z\xfcrich").message.attributes["colour"] == "Zürich"

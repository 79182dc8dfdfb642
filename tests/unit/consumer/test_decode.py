"""Deliveries: a message is read, or carries its fault."""

from __future__ import annotations

import pytest
from consumer_kit import CONFIG, SLOT_BITS, raw, write
from google.pubsub_v1 import PubsubMessage, ReceivedMessage

from consumer.delivery import NO_SLOT, check_slot, decode
from consumer.errors import PermanentError
from shardctl.fleet.keyspace import digits_of, slot_of

SLOT = digits_of(slot_of("1", SLOT_BITS), SLOT_BITS)
GOOD = {"slot": SLOT, "partition_key": "1", "message_type": "customer"}


def received(attributes, data=b"{}", ordering_key=""):
    message = PubsubMessage(
        data=data,
        attributes=attributes,
        ordering_key=ordering_key,
        message_id="m1",
        publish_time={"seconds": 5, "nanos": 7_999},
    )
    return ReceivedMessage.pb(ReceivedMessage(ack_id="a1", message=message))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        pytest.param({}, "bad_slot", id="no attributes"),
        pytest.param({"slot": ""}, "bad_slot", id="slot empty"),
        pytest.param({"slot": SLOT[1:]}, "bad_slot", id="slot short"),
        pytest.param({"slot": SLOT + "0"}, "bad_slot", id="slot long"),
        pytest.param({"slot": "2" * SLOT_BITS}, "bad_slot", id="slot of other digits"),
        pytest.param({"slot": "0" * (SLOT_BITS - 1) + "\uff11"}, "bad_slot", id="slot of wide digits"),
        pytest.param({"slot": " " + SLOT[1:]}, "bad_slot", id="slot with a blank"),
        pytest.param({"partition_key": ""}, "bad_key", id="key empty"),
        pytest.param({"partition_key": "k" * 256}, "bad_key", id="key long"),
        pytest.param({"partition_key": "k\x00"}, "bad_key", id="key with NUL"),
        pytest.param({"idempotency_key": "k" * 256}, "bad_key", id="idempotency key long"),
        pytest.param({"idempotency_key": "\x00"}, "bad_key", id="idempotency key with NUL"),
        pytest.param({"message_type": ""}, "unknown_type", id="type empty"),
        pytest.param({"message_type": "nobody"}, "unknown_type", id="type unknown"),
        pytest.param({"operation": "UPSERT"}, "bad_operation", id="operation in capitals"),
        pytest.param({"operation": "drop table"}, "bad_operation", id="operation unknown"),
        pytest.param({"shardctl-barrier": "r1"}, "reserved_attribute", id="write that says it is a barrier"),
        pytest.param({"shardctl-barrier": "r1", "idempotency_key": "k" * 256}, "bad_key", id="and has a long key"),
    ],
)
def test_what_cant_be_read_carries_its_fault(attributes, reason):
    delivery = decode(received(GOOD | attributes if attributes else {}), "s", 1, CONFIG, 1.0)
    assert delivery.fault.reason == reason
    assert (delivery.slot == NO_SLOT) == (reason == "bad_slot")
    assert delivery.idempotency_key
    assert "\x00" not in delivery.idempotency_key


def test_a_good_message_is_read():
    delivery = decode(received(GOOD | {"operation": "delete", "idempotency_key": "i1"}), "s", 1, CONFIG, 1.0)
    assert delivery.fault is None
    assert (delivery.slot, delivery.partition_key, delivery.operation) == (slot_of("1", SLOT_BITS), "1", "delete")
    assert (delivery.idempotency_key, delivery.message_id, delivery.publish_time_us) == ("i1", "m1", 5_000_007)


MARKER = {"slot": SLOT, "message_type": "shardctl-barrier", "shardctl-barrier": "r1"} | {
    "shardctl-shard": "s0", "shardctl-generation": "1", "shardctl-token": "t"
}  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "key", "ends_lane"),
    [
        pytest.param({}, SLOT, True, id="of this lane"),
        pytest.param({"shardctl-shard": "s1"}, SLOT, False, id="of another shard"),
        pytest.param({"shardctl-generation": "2"}, SLOT, False, id="of another generation"),
        pytest.param({"shardctl-generation": "9" * 5_000}, SLOT, False, id="of a generation without end"),
        pytest.param({"shardctl-generation": "-1"}, SLOT, False, id="of no generation"),
        pytest.param({}, "", False, id="a copy without order"),
    ],
)
def test_a_barrier_is_no_write_and_may_end_the_lane_that_it_names(attributes, key, ends_lane):
    delivery = decode(received(MARKER | attributes, b"", key), "s", 1, CONFIG, 1.0)
    assert delivery.fault is None
    assert delivery.barrier.token == "t"
    assert delivery.ends_lane == ends_lane


def test_without_an_idempotency_key_the_message_id_is_it():
    assert decode(received(GOOD), "s", 1, CONFIG, 1.0).idempotency_key == "m1"


def test_a_slot_that_isnt_its_keys_is_refused():
    with pytest.raises(PermanentError) as refused:
        check_slot(raw("customer", b"{}", "1", slot=(slot_of("1", SLOT_BITS) + 1) % 64), CONFIG)
    assert refused.value.reason == "wrong_slot"


def test_writes_of_the_kit_are_sound():
    assert write("customer", {"customer_id": "1"}).fault is None

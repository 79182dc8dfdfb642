"""What a letter says, and what its replay looks like, whichever way it was written."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letter_kit import FLEET, KEY, MOVING, OURS, PUBSUBS, SLOT, US, WRITE, letter

from shardctl.deadletter.letter import Message, Origin, copy_of, note_of, read
from shardctl.wire.identity import COPY_OF


def test_a_consumers():
    dead_letter = letter(WRITE | OURS | {"idempotency_key": "i"})
    assert (dead_letter.origin, dead_letter.reason, dead_letter.detail, dead_letter.shard) == (
        Origin.CONSUMER,
        "constraint",
        "no",
        "s0",
    )
    assert (dead_letter.original_id, dead_letter.written_us, dead_letter.idempotency_key, dead_letter.failed_slot) == (
        "17",
        US - 5,
        "i",
        SLOT,
    )
    assert dead_letter.place.shards == ("s0",)
    assert not dead_letter.repaired


def test_pubsubs_own():
    dead_letter = letter(WRITE | PUBSUBS)
    moment = datetime(2023, 11, 14, 22, 13, 19, 123_000, tzinfo=UTC)
    assert (dead_letter.origin, dead_letter.reason, dead_letter.shard) == (Origin.PUBSUB, "max_delivery_attempts", "s0")
    assert (dead_letter.written_us, dead_letter.precision_us) == (int(moment.timestamp() * 1e6), 1_000)
    assert (dead_letter.has_own_key, dead_letter.idempotency_key, dead_letter.original_id) == (False, "letter-99", "")
    assert letter(WRITE | PUBSUBS | {"idempotency_key": "i"}).has_own_key
    odd = letter(WRITE | PUBSUBS | {"CloudPubSubDeadLetterSourceTopicPublishTime": "soon"})
    assert (odd.written_us, odd.precision_us) == (US, 1)


def test_a_strangers():
    dead_letter = letter({})
    assert (dead_letter.origin, dead_letter.reason, dead_letter.shard, dead_letter.place) == (
        Origin.UNKNOWN,
        "unknown",
        "",
        None,
    )


def test_consumer_attributes_that_a_producer_forged_are_ignored():
    """Pub/Sub's policy sends a message as it was, behind attributes of its own that no publisher can keep from being set."""
    forged = letter(WRITE | OURS | PUBSUBS | {"shardctl-shortened": "x", "shardctl-reason": "key_reused"})
    honest = letter(WRITE | PUBSUBS)
    fields = (
        "origin",
        "reason",
        "shard",
        "original_id",
        "idempotency_key",
        "failed_slot",
        "place",
        "unfit",
        "written_us",
    )
    assert [getattr(forged, name) for name in fields] == [getattr(honest, name) for name in fields]
    stray = letter(WRITE | OURS, stray=True, subscription="shop-strays")
    assert stray.place == letter(WRITE, stray=True, subscription="shop-strays").place
    assert letter(WRITE | PUBSUBS | {"shardctl-reason": "x"}).origin == Origin.PUBSUB


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (WRITE | {"slot": ""}, "no_slot"),
        (WRITE | {"slot": "0101"}, "bad_slot"),
        (WRITE | {"slot": "\u0660" * 6}, "bad_slot"),
        (WRITE | {"message_type": "else"}, "unknown_type"),
        (WRITE, "taken_now"),
    ],
)
def test_why_a_stray_is_one(attributes, reason):
    dead_letter = letter(attributes, stray=True, subscription="shop-strays")
    assert (dead_letter.origin, dead_letter.reason) == (Origin.STRAY, reason)
    assert (dead_letter.original_id, dead_letter.idempotency_key, dead_letter.has_own_key) == ("99", "99", True)


@pytest.mark.parametrize(
    ("attributes", "data", "code"),
    [
        (WRITE | {"message_type": "else"}, b"{}", "unknown_type"),
        (WRITE | {"partition_key": ""}, b"{}", "bad_key"),
        (WRITE | {"partition_key": "k" * 256}, b"{}", "bad_key"),
        (WRITE | {"partition_key": "a\x00"}, b"{}", "bad_key"),
        (WRITE | {"operation": "merge"}, b"{}", "bad_operation"),
        (WRITE | {"message_type": "timed"}, b"{}", "bad_time"),
        (WRITE | {"message_type": "timed"}, b"[1]", "bad_time"),
        (WRITE | {"message_type": "timed"}, b"\xff", "bad_time"),
        (WRITE | {"shardctl-barrier": "r", "partition_key": ""}, b"", "barrier"),
        (WRITE | {"shardctl-barrier": "r", "shardctl-shard": "s0"}, b"", "reserved_attribute"),
        (WRITE | {"shardctl-barrier": "r", "partition_key": ""}, b"{}", "reserved_attribute"),
        (WRITE | {f"a{n}": "" for n in range(97)}, b"{}", "too_large"),
        (WRITE, b"x" * 9_999_500, "too_large"),
    ],
)
def test_what_can_not_be_published_again(attributes, data, code):
    dead_letter = letter(attributes, data, stray=True)
    assert dead_letter.place is None
    assert dead_letter.unfit.code == code


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"idempotency_key": "i", "shardctl-reason": "key_reused"}, "key_reused"),
        ({"shardctl-shortened": "1 of 2 bytes"}, "shortened"),
    ],
)
def test_what_can_not_be_published_again_by_its_consumers_word(attributes, code):
    dead_letter = letter(WRITE | OURS | attributes)
    assert (dead_letter.place, dead_letter.unfit.code) == (None, code)


def test_a_time_bucket_gives_the_slot():
    dead_letter = letter(WRITE | {"message_type": "timed"}, b'{"at": "1970-01-06T12:00:00Z"}', stray=True)
    assert (dead_letter.place.slot, dead_letter.place.digits, dead_letter.repaired) == (5, "000101", True)


def test_while_slots_move_all_who_may_own_one_are_named_the_newest_first():
    assert letter(WRITE, fleet=MOVING, stray=True).place.shards == ("s1", "s0")


@pytest.mark.parametrize("key", ["", "x" * 256, "\x00"])
def test_a_key_that_no_inbox_takes_was_the_messages_id(key):
    """As the consumer reads it."""
    assert letter(WRITE | OURS | {"idempotency_key": key}).idempotency_key == "17"


def test_a_copy_is_the_write_as_it_was_in_its_own_slot():
    message = Message("99", US, "x", WRITE | OURS | {"slot": "9", "color": "red", "googclient_x": "1"}, b"\x00")
    copy = copy_of(FLEET, read(FLEET, "shop-dead", message, stray=False), message)
    assert copy.attributes == WRITE | {"color": "red", COPY_OF: "17"}
    assert (copy.ordering_key, copy.data) == (f"{SLOT:06b}", b"\x00")


@pytest.mark.parametrize("written", ["", "-5", "9" * 18, "9" * 30, "1e9", "\u0663"])
def test_a_time_that_can_not_be_is_the_letters_own(written):
    assert letter(WRITE | OURS | {"shardctl-publish-time-us": written}).written_us == US


@pytest.mark.parametrize(
    "written", ["9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00+09:00"]
)
def test_a_time_of_pubsubs_that_can_not_be_is_the_letters_own(written):
    """No age could be told from the last moments of the year 9999."""
    dead_letter = letter(WRITE | PUBSUBS | {"CloudPubSubDeadLetterSourceTopicPublishTime": written})
    assert (dead_letter.written_us, dead_letter.precision_us) == (US, 1)


def test_order_is_by_slot_then_time_then_number():
    letters = [
        letter(WRITE | OURS | {"shardctl-message-id": number, "shardctl-publish-time-us": str(US + at)})
        for number, at in (("10", 1), ("9", 1), ("100", 0), ("x", 1))
    ]
    assert [dead_letter.original_id for dead_letter in sorted(letters, key=lambda dead_letter: dead_letter.order)] == [
        "100",
        "x",
        "9",
        "10",
    ]


def test_notes_differ_by_letter_and_by_write():
    notes = {
        note_of(letter(WRITE | OURS | {"idempotency_key": key}, ident=ident))
        for key in ("i", "j")
        for ident in ("1", "2")
    }
    assert len(notes) == 4


NAMES = st.sampled_from(
    [
        *WRITE,
        *OURS,
        *PUBSUBS,
        "operation",
        "idempotency_key",
        "caller",
        COPY_OF,
        "shardctl-barrier",
        "shardctl-generation",
    ]
)
VALUES = st.one_of(st.sampled_from(["", "thing", "timed", KEY, "000101", "s0", "17"]), st.text(max_size=300))


@given(
    st.dictionaries(NAMES | st.text(max_size=20), VALUES, max_size=12), st.binary(max_size=40), st.booleans(), VALUES
)
def test_nothing_that_a_message_holds_raises(attributes, data, stray, ident):
    message = Message(ident, US, "", attributes, data)
    dead_letter = read(FLEET, "shop-dead", message, stray=stray)
    assert (dead_letter.place is None) != (dead_letter.unfit is None)
    assert dead_letter.order
    assert dead_letter.idempotency_key
    if dead_letter.place:
        copy = copy_of(FLEET, dead_letter, message)
        again = read(FLEET, "shop-dead", copy, stray=True)
        assert again.place == dead_letter.place
        assert not again.repaired
        assert (again.write_identity, again.idempotency_key) == (
            dead_letter.write_identity,
            dead_letter.idempotency_key,
        )

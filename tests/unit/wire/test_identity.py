"""What a write is known by: one identity for the same write, and another for every other."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.wire import identity

V7 = "01931c5e-7a2b-7def-8123-456789abcdef"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("identity_made", "wanted"),
    [
        (identity.of_key("", "order", "k"), "9b27ac1aaa1e3778bb2e3e527438b1ad"),
        (identity.of_key("billing", "order", "k"), "c096d1db224716fcb039c4a3d00229f2"),
        (identity.of_key("billing", "order", V7), "01931c5e7a2ba748db788fdba3e9bec9"),
        (identity.of_message("8473"), "d64f4a5cf0cec1e1c70d78bad685b5ea"),
        (identity.of_refusal("8473"), "c6addc1dd2515aae56aa0bdfa4bc1015"),
        (identity.of_note("shardctl-letter:ab"), "1d437eb5352906744faf29d51cb266fd"),
    ],
)
def test_identities_never_change(identity_made, wanted):
    """The inbox remembers for weeks: a version that computed another would apply what was applied before."""
    assert identity_made.hex() == wanted


def test_fingerprints_never_change():
    assert identity.fingerprint("upsert", "o-1", b'{"order_id":"o-1"}') == -1183835256
    assert identity.key_hash("order", "o-1") == -1633053090
    assert identity.in_slot(identity.of_message("8473"), 1023).hex() == "d64f4a5cf0cec1e1c70d78bad685b615"


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_another_caller_type_or_key_is_another_write(first, other):
    assert (identity.of_key(*first) == identity.of_key(*other)) == (first == other)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (("a", "bc", "d"), ("ab", "c", "d")),
        (("", "a b", "c"), ("a", " b", "c")),
        (("1", "1 1", "x"), ("1 1", "1", "x")),
    ],
)
def test_texts_are_kept_apart(first, other):
    assert identity.of_key(*first) != identity.of_key(*other)


@given(TEXT, TEXT)
def test_no_text_leads_from_one_name_space_into_another(name, other):
    keyless = {identity.of_message(name), identity.of_refusal(name), identity.of_note(name)}
    keyed = {identity.of_key("", "", name), identity.of_key("", other, name), identity.of_key(other, "", name)}
    assert len(keyless) == 3
    assert not keyless & keyed
    assert {len(identity_made) for identity_made in keyless | keyed} == {identity.BYTES}


@pytest.mark.parametrize("key", [V7, V7.upper(), V7.replace("-", "")], ids=["text", "upper case", "digits"])
def test_a_uuid7s_time_comes_first(key):
    identity_made = identity.of_key("c", "order", key)
    assert identity_made[:6].hex() == "01931c5e7a2b"
    assert identity_made[6:] != identity.of_key("d", "order", key)[6:]


NOT_V7 = (
    "01931c5e-7a2b-4def-8123-456789abcdef",
    "01931c5e7a2b4def8123456789abcdef",
    "01931c5ex7a2b-7def-8123-456789abcdef",
    "  931c5e-7a2b-7def-8123-456789abcdef",
    "zz931c5e-7a2b-7def-8123-456789abcdef",
    "\u0660" * 12 + "7" + "\u0660" * 19,
    V7 + "0",
    "",
)


@pytest.mark.parametrize("key", NOT_V7)
def test_any_other_key_is_all_digest(key):
    assert identity.of_key("", "order", key)[:6].hex() != "01931c5e7a2b"
    assert len(identity.of_key("", "order", key)) == identity.BYTES


@given(st.tuples(TEXT, TEXT, st.binary(max_size=20)), st.tuples(TEXT, TEXT, st.binary(max_size=20)))
def test_a_fingerprint_is_of_operation_routing_key_and_body(first, other):
    assert (identity.fingerprint(*first) == identity.fingerprint(*other)) == (first == other)
    assert -(1 << 31) <= identity.fingerprint(*first) < 1 << 31


@given(st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT))
def test_a_key_hash_is_of_type_and_routing_key(first, other):
    assert (identity.key_hash(*first) == identity.key_hash(*other)) == (first == other)
    assert -(1 << 31) <= identity.key_hash(*first) < 1 << 31


@given(TEXT, st.integers(0, 1 << 14), st.integers(0, 1 << 14))
def test_one_identity_is_another_in_another_slot_and_begins_alike(name, slot, other):
    its_identity = identity.of_key("", "order", name)
    here, there = identity.in_slot(its_identity, slot), identity.in_slot(its_identity, other)
    assert (here == there) == (slot == other)
    assert here[:12] == its_identity[:12]
    assert (identity.tail(here) == identity.tail(there)) == (slot == other)


def test_keys_are_uuid7s_and_each_is_greater_than_the_one_before(monkeypatch):
    keys = identity.Keys()
    made = [keys.new() for _ in range(1_000)]
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)
    made += [keys.new() for _ in range(1_000)]
    assert made == sorted(set(made))
    assert {(UUID(key).version, UUID(key).variant) for key in made} == {(7, "specified in RFC 4122")}
    assert abs(int(made[0].replace("-", "")[:12], 16) - now // 1_000_000) < 60_000


def test_keys_stay_in_order_when_a_millisecond_is_full():
    keys = identity.Keys()
    keys._last_ms, keys._last_random = (time.time_ns() // 1_000_000) + 10**9, (1 << 74) - 2
    before = keys._last_ms
    first, second = keys.new(), keys.new()
    assert first < second
    assert int(first.replace("-", "")[:12], 16) == before + 1


def test_threads_get_keys_of_their_own():
    keys = identity.Keys()
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: [keys.new() for _ in range(500)], range(4)))
    assert len({key for some in made for key in some}) == 2_000
    assert all(some == sorted(some) for some in made)

"""How a client asks what became of a write: the path, and the preference to wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.gateway.fields import FieldError
from shardctl.gateway.paths import WritePath
from shardctl.gateway.preferences import wait_of

KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (b"wait=2", 2),
        (b"respond-async, WAIT = 10; x=y", 10),
        (b'wait="7"', 7),
        (b"wait=0", 0),
        (b"wait=3, wait=4", 3),
        (b"wait=99999999999999999999", 10**9),
        (b"wait=-1", None),
        (b"wait=1e9", None),
        (b"wait=1.5", None),
        (b"wait=", None),
        (b"wait", None),
        (b"waiting=3", None),
        ("wait=\u00b2".encode("latin-1"), None),
        (b"\xff\xfe,,;=", None),
        (b"", None),
    ],
)
def test_a_preference_that_is_not_understood_is_ignored(prefer, seconds):
    assert wait_of(prefer) == seconds


@given(st.sampled_from(["order", "stock/level"]), KEYS, KEYS)
def test_a_path_gives_back_what_it_was_made_of(kind, key, idempotency_key):
    path = WritePath(kind, key, idempotency_key)
    assert WritePath.read(path.text.encode()) == path


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"/v1/writes/order/%FF/i", "key"),
        (b"/v1/writes/order//i", "key"),
        (b"/v1/writes/order/k/", "idempotency_key"),
        (b"/v1/writes/order/k/%00", "idempotency_key"),
        (b"/v1/writes/order/%0d%0aSet-Cookie:x/i", "key"),
        (b"/v1/writes/order/" + b"k" * 300 + b"/i", "key"),
        (b"/v1/writes/order/k/" + b"%F0%9F%98%80" * 256, "idempotency_key"),
    ],
)
def test_a_part_that_can_be_no_key_is_named(raw, where):
    with pytest.raises(FieldError) as error:
        WritePath.read(raw)
    assert (error.value.where, error.value.kind) == (where, "parameter")


@pytest.mark.parametrize("raw", [b"/v1/writes/order", b"/v1/writes/order/k", b"/v1/writ%65s/order/k/i", b""])
def test_a_path_with_fewer_parts_is_none(raw):
    assert WritePath.read(raw) is None

"""Reading dead letters with threads: when they begin, and what becomes of a thread's failure."""

from __future__ import annotations

import types

import pytest

from shardctl.deadletter.leasedreader import LeasedReader


def client(streaming_pull):
    return types.SimpleNamespace(transport=types.SimpleNamespace(streaming_pull=streaming_pull))


def no_letters(requests, metadata):
    """A stream that is open and says nothing until it is closed."""

    class Call:
        def __iter__(self):
            for _ in requests:
                pass
            return iter(())

        def cancel(self):
            pass

    return Call()


def broken(*_, **__):
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("pull", "left"), [(broken, lambda: None), (no_letters, broken)], ids=["a reader", "the counter"]
)
def test_a_threads_failure_is_raised_where_letters_are_read(pull, left):
    """A stream that nobody reads any more would look like one that is empty."""
    with (
        LeasedReader(client(pull), "p", ["s"], left=left, silence_seconds=60) as desk,
        pytest.raises(KeyError, match="a bug"),
    ):
        list(desk.read())


def test_nothing_is_leased_before_the_reading_begins():
    """A Ctrl-C while a `with` block is entered runs no `__exit__`, so what was leased by then would stay leased."""
    opened = []
    with LeasedReader(client(lambda *_, **__: opened.append(1)), "p", ["s"], silence_seconds=60) as reader:
        assert not any(thread.is_alive() for thread in (*reader._readers, reader._keeper, reader._counter))
    assert not opened

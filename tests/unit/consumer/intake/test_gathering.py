"""Messages of a stream are read together where no batch leaves yet, in their order, as soon as one may."""

from __future__ import annotations

import asyncio

import pytest
from virtualtime import run

from consumer.intake.gathering import MOST_MESSAGES, MOST_SECONDS, Gathering


class Bench:
    """`reads` has the time and the messages of each read. No batch leaves until `next_at`; one leaves `pause` after each read."""

    def __init__(self, pause, is_urgent=lambda _: False):
        self.pause, self.reads, self.next_at = pause, [], 0.0
        self.time = asyncio.get_running_loop().time
        self.gathering = Gathering(self._read, lambda: self.next_at - self.time(), is_urgent)

    def _read(self, messages):
        self.reads.append((self.time(), list(messages)))
        self.next_at = self.time() + self.pause


def test_what_comes_before_a_batch_may_leave_is_read_together_when_it_may():
    async def scenario():
        bench = Bench(pause=0.05)
        bench.gathering.add([1])
        for number in (2, 3, 4):
            bench.gathering.add([number])
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        bench.gathering.add([5])
        assert bench.reads == [(0.0, [1]), (0.05, [2, 3, 4]), (pytest.approx(1.03), [5])]

    run(scenario())


def test_without_a_pause_nothing_waits():
    async def scenario():
        bench = Bench(pause=0.0)
        for number in (1, 2, 3):
            bench.gathering.add([number])
        assert [messages for _, messages in bench.reads] == [[1], [2], [3]]

    run(scenario())


def test_what_is_urgent_is_read_at_once_behind_what_came_before():
    async def scenario():
        bench = Bench(pause=0.05, is_urgent=lambda message: message == 3)
        for number in (1, 2, 3, 4):
            bench.gathering.add([number])
        assert [messages for _, messages in bench.reads] == [[1], [2, 3]]

    run(scenario())


def test_many_messages_are_read_at_once():
    async def scenario():
        bench = Bench(pause=0.05)
        bench.gathering.add([0])
        bench.gathering.add([1])
        bench.gathering.add(range(2, MOST_MESSAGES + 2))
        assert [len(messages) for _, messages in bench.reads] == [1, MOST_MESSAGES + 1]
        await asyncio.sleep(1)
        assert len(bench.reads) == 2

    run(scenario())


def test_a_long_pause_keeps_no_message_unread_for_long():
    async def scenario():
        bench = Bench(pause=10.0)
        bench.gathering.add([1])
        bench.gathering.add([2])
        await asyncio.sleep(1)
        assert bench.reads == [(0.0, [1]), (MOST_SECONDS, [2])]

    run(scenario())


def test_the_end_of_a_stream_leaves_nothing_unread():
    async def scenario():
        bench = Bench(pause=0.05)
        bench.gathering.add([1])
        bench.gathering.add([2])
        bench.gathering.read()
        bench.gathering.read()
        assert [messages for _, messages in bench.reads] == [[1], [2]]
        await asyncio.sleep(1)
        assert len(bench.reads) == 2

    run(scenario())


def test_a_bug_of_a_read_by_the_timer_is_the_readers():
    async def scenario():
        bench = Bench(pause=0.05)
        bench.gathering.add([1])
        bench.gathering.add([2])
        bench.pause = "a bug"
        with pytest.raises(TypeError):
            await asyncio.wait_for(bench.gathering.failed, 1)

    run(scenario())

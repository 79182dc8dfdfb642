"""Standing by, leading, standing down: with a lease that a test controls."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from consumer_kit import InThisThread

from consumer.errors import TransientError
from consumer.leader.election import Election, Times
from consumer.leader.leadership import Leadership, LeaseError
from consumer.leader.turns import LeaderLoop
from consumer.observability.metrics import Metrics
from consumer.replica.lifecycle import NotDrainedError

TIMES = Times(0.3, 0.2, 0.01)


class FakeLease:
    identity = "me"

    def __init__(self, holder="me"):
        self.holder, self.trouble, self.released, self.hangs = holder, None, 0, False

    async def hold(self):
        if self.hangs:
            await asyncio.sleep(60)
        if self.trouble:
            raise LeaseError(self.trouble)
        return self.holder

    async def release(self):
        self.released += self.holder == self.identity


class FakeTerm:
    def __init__(self):
        self.number, self.begun, self.trouble = None, 0, []

    def begin(self):
        if self.trouble:
            raise TransientError(self.trouble.pop())
        self.begun += 1
        self.number = self.begun
        return self.begun

    def end(self):
        self.number = None


class FakeWork:
    """Drains for some moments; `dies` ends it by itself, as when its term is over."""

    why_not_ready = None

    def __init__(self, bench):
        self.bench, self.dies = bench, asyncio.Event()

    async def run(self, stop):
        self.bench.log.append("begin")
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self.dies)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        await asyncio.sleep(0.01)
        assert self.bench.lease.released == 0  # not before all is drained
        self.bench.log.append("end")
        if self.bench.undrained:
            raise NotDrainedError(1)


class Bench:
    def __init__(self, **lease):
        self.lease, self.term, self.metrics, self.log = FakeLease(**lease), FakeTerm(), Metrics(), []
        self.leadership = Leadership(self.lease, Election(TIMES, time.monotonic()), time.monotonic)
        self.works, self.undrained = [], False
        self.turns = LeaderLoop(self.new_work, self.leadership, self.term, InThisThread(), self.metrics)
        self.stop = asyncio.Event()

    def new_work(self):
        self.works.append(FakeWork(self))
        return self.works[-1]

    async def until(self, condition):
        for _ in range(3_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        pytest.fail("it never came true")

    def gauge(self):
        return self.metrics.registry.get_sample_value("shardctl_leader")

    async def __aenter__(self):
        self.running = asyncio.create_task(self.turns.run(self.stop))
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        if not self.running.done():
            await self.running


def play(scenario, **lease):
    async def run():
        async with Bench(**lease) as bench:
            await scenario(bench)
        return bench

    return asyncio.run(run())


def test_the_winner_begins_a_term_then_works_and_gives_up_the_lease_when_all_is_drained():
    async def scenario(bench):
        await bench.until(lambda: bench.log == ["begin"])
        assert (bench.term.number, bench.gauge(), bench.turns.writing) == (1, 1, True)

    bench = play(scenario)
    assert bench.log == ["begin", "end"]
    assert (bench.lease.released, bench.gauge(), bench.term.number) == (1, 0, None)


def test_a_standby_is_ready_and_writes_nothing():
    async def scenario(bench):
        await bench.until(lambda: bench.turns.why_not_ready is None)
        await asyncio.sleep(0.05)
        assert (bench.term.begun, bench.gauge(), bench.turns.writing) == (0, 0, False)

    bench = play(scenario, holder="other")
    assert bench.lease.released == 0  # it isn't ours to give up


def test_a_replica_that_cant_ask_for_the_lease_isnt_ready():
    async def scenario(bench):
        bench.lease.trouble = "403"
        await bench.until(lambda: bench.turns.why_not_ready == "403")
        bench.lease.trouble = None
        await bench.until(lambda: bench.turns.why_not_ready is None)

    play(scenario, holder="other")


@pytest.mark.slow
def test_a_short_silence_leaves_a_standby_ready_and_a_long_one_doesnt():
    async def scenario(bench):
        await bench.until(lambda: bench.turns.why_not_ready is None)
        bench.lease.trouble = "gone"
        began = time.monotonic()
        await bench.until(lambda: bench.turns.why_not_ready == "gone")
        assert time.monotonic() - began > TIMES.lease_duration / 2

    play(scenario, holder="other")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["errors", "silence"])
def test_a_leader_that_cant_renew_stands_down_before_its_lease_ends_and_leads_again_later(how):
    async def scenario(bench):
        await bench.until(lambda: bench.log == ["begin"])
        began = time.monotonic()
        bench.lease.trouble, bench.lease.hangs = ("gone" if how == "errors" else None), how == "silence"
        await bench.until(lambda: bench.log == ["begin", "end"])
        assert time.monotonic() - began > TIMES.renew_deadline / 2
        assert not bench.running.done()  # it stands by
        bench.lease.trouble, bench.lease.hangs = None, False
        await bench.until(lambda: bench.log == ["begin", "end", "begin"])
        assert bench.term.number == 2  # a new term for each time

    play(scenario)


def test_a_standby_that_wins_in_the_moment_in_which_it_stops_gives_the_lease_up():
    async def scenario(bench):
        await bench.until(lambda: bench.turns.why_not_ready is None)
        bench.lease.hangs = True
        await asyncio.sleep(0.02)
        bench.lease.holder = "me"  # the answer to which nobody waits for any more

    assert play(scenario, holder="other").lease.released == 1


def test_a_leader_whose_lease_another_has_stands_down_at_once():
    async def scenario(bench):
        await bench.until(lambda: bench.log == ["begin"])
        bench.lease.holder = "other"
        await bench.until(lambda: bench.log == ["begin", "end"])
        assert bench.gauge() == 0

    bench = play(scenario)
    assert bench.lease.released == 0


def test_work_that_ends_by_itself_begins_again_in_a_new_term():
    """Another replica had taken the term while the lease is ours: as after a pause of that one at the wrong moment."""

    async def scenario(bench):
        await bench.until(lambda: bench.log == ["begin"])
        bench.works[0].dies.set()
        await bench.until(lambda: bench.log == ["begin", "end", "begin"])
        assert bench.term.number == 2

    play(scenario)


def test_nothing_is_read_until_the_database_has_begun_the_term():
    async def scenario(bench):
        bench.term.trouble = ["down"]
        await bench.until(lambda: bench.leadership.leading)
        assert bench.log == []
        assert bench.turns.why_not_ready is not None
        await bench.until(lambda: bench.log == ["begin"])

    play(scenario)


def test_a_lease_that_is_refused_from_the_start_is_reported_and_each_new_reason_too(caplog):
    caplog.set_level(logging.INFO)

    def failing(bench):
        return bench.metrics.registry.get_sample_value("shardctl_leader_lease_failing")

    async def scenario(bench):
        bench.lease.trouble = "403: no Role"
        await bench.until(lambda: bench.turns.why_not_ready == "403: no Role")
        assert failing(bench) == 1
        await bench.until(lambda: bench.leadership._trouble.failures > 3)
        bench.lease.trouble = "503: busy"
        await bench.until(lambda: bench.turns.why_not_ready == "503: busy")
        bench.lease.trouble = None
        await bench.until(lambda: bench.turns.writing)
        assert failing(bench) == 0

    play(scenario)
    records = [record for record in caplog.records if record.action in ("lease_unanswered", "lease_answered")]
    assert [record.levelname for record in records] == ["WARNING", "WARNING", "INFO"]
    assert "403: no Role" in records[0].getMessage()
    assert "503: busy" in records[1].getMessage()


def test_what_couldnt_be_drained_is_reported_at_the_very_end_and_not_before():
    async def scenario():
        async with Bench() as bench:
            bench.undrained = True
            await bench.until(lambda: bench.log == ["begin"])
            bench.works[0].dies.set()
            await bench.until(lambda: bench.log == ["begin", "end", "begin"])
            bench.undrained = False
            bench.stop.set()
            with pytest.raises(NotDrainedError):
                await bench.running
            assert bench.lease.released == 1

    asyncio.run(scenario())


def test_a_bug_in_keeping_the_lease_is_seen():
    async def broken():
        raise ZeroDivisionError

    async def scenario():
        bench = Bench()
        bench.lease.hold = broken
        with pytest.raises(ZeroDivisionError):
            await bench.turns.run(bench.stop)

    asyncio.run(scenario())

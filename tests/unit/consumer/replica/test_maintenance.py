"""Maintenance, with fakes: it reports trouble, outlasts it, holds nothing up, and ends when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from consumer_kit import InThisThread
from patience import PATIENCE_SECONDS

from consumer.errors import BlockedError, PermanentError, TransientError
from consumer.observability.metrics import Metrics
from consumer.replica import maintenance
from consumer.replica.maintenance import Maintenance
from consumer.store.inboxsize import InboxSize
from consumer.store.sweep import Retention, Swept
from consumer.store.transaction import Released
from shardctl.shard.schema import TABLE_NOT_READY

NO_TIME = 0.0


class Redis:
    """The turn is always ours."""

    def register_script(self, _):
        async def yes(**_):
            return 1

        return yes

    async def set(self, *_, **__):
        return True


class Gate:
    async def ask(self, call):
        return await call()


class Shard:
    """Keys with a story each: what every release of it gives or raises. `purges` likewise."""

    def __init__(self, stories=(), purges=()):
        self.stories = {key: list(story) for key, story in dict(stories).items()}
        self.purges, self.released, self.purged = list(purges), [], 0
        self.chunks, self.places, self.forgotten = [], [], []
        self.outgrown = self.deletions = 0

    def released_keys(self):
        return [key for key, story in self.stories.items() if story]

    def release(self, key, read):
        assert read is print
        self.released.append(key)
        return self._next(self.stories[key])

    def not_ready_types(self):
        return sorted({kind for (_, kind, _), story in self.stories.items() if story})

    def not_ready_keys(self, message_type):
        return [key for key, story in self.stories.items() if story and key[1] == message_type]

    def purge(self, *about):
        self.purged += 1
        self.places.append(about[1])
        self.chunks.append(about[2])
        return self._next(self.purges) or Swept(0, 0, over=True)

    def forget_replicas(self, silent_seconds):
        self.forgotten.append(silent_seconds)

    def end_outgrown_logs(self):
        return self.outgrown

    def delete_ended_logs(self):
        self.deletions += 1
        return self.deletions < self.outgrown

    def _next(self, story):
        what = story.pop(0) if story else None
        if isinstance(what, Exception):
            raise what
        return what


def maintainer(shard, threads=None, metrics=None):
    return Maintenance(
        shard, print, Redis(), Gate(), "f:s", Retention(3_600, 3_600), threads or InThisThread(), metrics or Metrics()
    )


def test_every_released_key_is_applied_to_its_end_and_counted():
    shard = Shard(
        {
            (1, "order", "a"): [Released(5, more=True), Released(2)],
            (2, "order", "b"): [Released(0, PermanentError("x", "y"))],
        }
    )
    metrics = Metrics()
    asyncio.run(maintainer(shard, metrics=metrics).release())
    assert sorted(shard.released) == [(1, "order", "a"), (1, "order", "a"), (2, "order", "b")]
    assert metrics.registry.get_sample_value("shardctl_messages_released_total") == 7


def test_a_type_whose_table_isnt_ready_is_tried_by_one_key_until_it_succeeds(caplog):
    caplog.set_level("INFO")
    waits = Released(0, PermanentError(TABLE_NOT_READY, "no such column: note"))
    stories = {(slot, "order", "k"): [Released(1)] for slot in range(2, 5)}
    shard = Shard({(1, "order", "k"): [waits, waits, Released(2, more=True), Released(1)], **stories})
    metrics = Metrics()
    maintenance = maintainer(shard, metrics=metrics)

    def retry():
        asyncio.run(maintenance.retry())
        return metrics.registry.get_sample_value("shardctl_table_not_ready", {"type": "order"})

    assert (retry(), retry()) == (1, 1)
    assert shard.released == [(1, "order", "k")] * 2
    [line] = [record.getMessage() for record in caplog.records if record.action == "parked"]  # of two tries
    assert "the table of type 'order': table_not_ready: no such column: note" in line
    assert retry() == 1  # as it was found
    assert shard.released[2:] == [(1, "order", "k")] * 2 + list(stories)
    assert retry() == 0
    assert metrics.registry.get_sample_value("shardctl_messages_released_total") == 6
    assert "the table of type 'order': is ready" in caplog.text


def test_a_type_whose_table_isnt_ready_doesnt_hold_up_another():
    waits = Released(0, PermanentError(TABLE_NOT_READY, "no such table: orders"))
    shard = Shard({(1, "order", "k"): [waits], (1, "customer", "k"): [Released(1)]})
    asyncio.run(maintainer(shard).retry())
    assert sorted(shard.released) == [(1, "customer", "k"), (1, "order", "k")]


def test_a_key_in_trouble_doesnt_hold_the_others_up():
    stories = {(slot, "order", "k"): [Released(1)] for slot in range(20)} | {
        (99, "order", "bad"): [TransientError("a conflict")]
    }
    shard = Shard(stories)
    with pytest.raises(TransientError):
        asyncio.run(maintainer(shard).release())
    assert set(shard.released) == set(stories)


def test_with_the_database_gone_it_doesnt_ask_for_every_key():
    shard = Shard({(slot, "order", "k"): [TransientError("gone")] for slot in range(20)})
    with pytest.raises(TransientError):
        asyncio.run(maintainer(shard).release())
    assert len(shard.released) == 2


def test_logs_that_have_outgrown_their_room_end_and_go(caplog):
    shard = Shard()
    shard.outgrown = 3
    asyncio.run(maintainer(shard).purge())
    assert shard.deletions == 3
    assert [record.action for record in caplog.records] == ["logs_ended"]
    assert "the logs of 3 slots" in caplog.text


def test_a_purge_rests_between_its_chunks_and_ends_where_its_walk_does():
    rests = []

    class Watched(Maintenance):
        async def _pause(self, seconds):
            rests.append(seconds)

    shard = Shard(purges=[Swept(100, page, over=False) for page in range(8)])
    watched = Watched(shard, print, Redis(), Gate(), "f:s", Retention(3_600, 3_600), InThisThread(), Metrics())
    asyncio.run(watched.purge())
    assert (shard.purged, len(rests)) == (9, 8)
    assert shard.places == [None, *range(8)]
    asyncio.run(watched.purge())  # it is not time for another walk, but for dead replicas
    assert shard.purged == 9
    assert shard.forgotten == [maintenance.REPLICA_SECONDS] * 2


def test_a_walk_that_was_cut_off_goes_on_where_it_was():
    shard = Shard(purges=[Swept(1, 40, over=False), TransientError("gone")])
    maintaining = maintainer(shard)
    with pytest.raises(TransientError):
        asyncio.run(maintaining.purge())
    asyncio.run(maintaining.purge())
    assert shard.places == [None, 40, 40]


def test_a_chunk_that_fails_is_smaller_the_next_time():
    shard = Shard(purges=[TransientError("over the time limit")] * 3)
    maintaining = maintainer(shard)
    for _ in range(3):
        with pytest.raises(TransientError):
            asyncio.run(maintaining.purge())
    assert shard.chunks == [8, 1, 1]


@pytest.mark.parametrize(
    ("error", "level"), [(TransientError("gone"), logging.WARNING), (KeyError("a bug"), logging.ERROR)], ids=str
)
def test_trouble_is_reported_once_counted_and_outlasted(monkeypatch, caplog, error, level):
    """Above all a bug: the loop must neither end silently nor end the process."""
    monkeypatch.setattr(maintenance, "PURGE_SECONDS", NO_TIME)
    monkeypatch.setattr(maintenance, "RELEASE_SECONDS", 1_000.0)
    caplog.set_level(logging.INFO)
    metrics = Metrics()

    async def scenario():
        stop = asyncio.Event()

        class Stops(Shard):
            def purge(self, *about):
                if not self.purges:
                    stop.set()
                return super().purge(*about)

        shard = Stops(purges=[error] * 3)
        await maintainer(shard, metrics=metrics).run(stop)
        return shard

    assert asyncio.run(scenario()).purged == 4
    assert metrics.registry.get_sample_value("shardctl_maintenance_failures_total", {"task": "purge"}) == 3
    levels = [record.levelno for record in caplog.records if getattr(record, "action", "") == "maintenance_failed"]
    assert levels == [level]


def test_a_bug_is_reported_with_its_traceback_behind_trouble_that_was_expected(monkeypatch, caplog):
    monkeypatch.setattr(maintenance, "PURGE_SECONDS", NO_TIME)
    monkeypatch.setattr(maintenance, "RELEASE_SECONDS", 1_000.0)
    caplog.set_level(logging.INFO)

    async def scenario():
        stop = asyncio.Event()

        class Stops(Shard):
            def purge(self, *about):
                if not self.purges:
                    stop.set()
                return super().purge(*about)

        await maintainer(
            Stops(purges=[TransientError("gone"), TransientError("gone"), KeyError("a bug"), KeyError("a bug")])
        ).run(stop)

    asyncio.run(scenario())
    reports = [(record.levelno, bool(record.exc_info)) for record in caplog.records if "maintenance" in record.action]
    assert reports == [(logging.WARNING, False), (logging.ERROR, True)]
    assert [record.action for record in caplog.records][-1] == "recovered"


def test_a_stop_ends_it_between_two_keys_and_in_a_rest(monkeypatch):
    monkeypatch.setattr(maintenance, "RELEASE_SECONDS", NO_TIME)

    async def scenario():
        stop = asyncio.Event()

        class Stops(Shard):
            def release(self, key, read):
                stop.set()
                return super().release(key, read)

        shard = Stops({(slot, "order", "k"): [Released(1, more=True)] * 5 for slot in range(5)})
        await asyncio.wait_for(maintainer(shard).run(stop), PATIENCE_SECONDS)
        return shard.released

    assert len(asyncio.run(scenario())) == 1


def test_a_key_that_is_blocked_holds_up_no_other_that_waits_for_its_table():
    blocked = BlockedError("no partition takes the row")
    shard = Shard(
        {
            (1, "order", "blocked"): [blocked] * 5,
            (2, "order", "free"): [Released(1)],
            (3, "receipt", "free"): [Released(1)],
        }
    )
    metrics = Metrics()
    with pytest.raises(BlockedError):
        asyncio.run(maintainer(shard, metrics=metrics).retry())
    assert shard.released == [(1, "order", "blocked"), (2, "order", "free"), (3, "receipt", "free")]
    assert metrics.registry.get_sample_value("shardctl_messages_released_total") == 2


def test_release_and_purge_share_one_thread(monkeypatch):
    """A second thread would be one that a batch waits for."""
    under_way, most = set(), 0

    class Watched(ThreadPoolExecutor):
        def submit(self, call, /, *args):
            nonlocal most
            future = super().submit(call, *args)
            under_way.add(future)
            most = max(most, sum(not task.done() for task in under_way))
            return future

    async def scenario():
        release_goes_on = threading.Event()

        class Busy(Shard):
            def release(self, key, read):
                release_goes_on.wait(PATIENCE_SECONDS)
                return super().release(key, read)

        with Watched(4) as threads:
            maintaining = maintainer(Busy({(1, "order", "k"): [Released(1)]}, [Swept(1, 0, over=False)] * 3), threads)
            both = asyncio.gather(maintaining.release(), maintaining.purge())
            asyncio.get_running_loop().call_later(0.1, release_goes_on.set)
            await both

    asyncio.run(scenario())
    assert most == 1


SIZE = InboxSize(rows=1_000, bytes=97_000, overdue_seconds=0)


class Measured(Shard):
    """An inbox of `SIZE`, and then whatever `sizes` say."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = [SIZE, *sizes]

    def measure(self, retention):
        assert retention == Retention(3_600, 3_600)
        return self._next(self.sizes)


class Turns(Redis):
    """The turn is ours the first time, and then what `turns` says; None: Redis doesn't answer."""

    def __init__(self, *turns):
        self.turns = [1, *turns]

    def register_script(self, _):
        async def turn(**_):
            return self.turns.pop(0)

        return turn


def shown(metrics):
    names = ("rows", "bytes", "overdue_seconds")
    return tuple(metrics.registry.get_sample_value(f"shardctl_inbox_{name}") for name in names)


@pytest.mark.parametrize(
    ("shard", "turns", "may_write", "then"),
    [
        pytest.param(Measured(InboxSize(None, 98_000, 60)), [1], True, (None, 98_000, 60), id="it is measured again"),
        pytest.param(Measured(), [0], True, (None, None, None), id="another replica has the turn"),
        pytest.param(Measured(), [None], True, (None, None, None), id="Redis is gone"),
        pytest.param(Measured(), [], False, (None, None, None), id="another replica leads"),
        pytest.param(Measured(TransientError("gone")), [1], True, (None, None, None), id="the database is gone"),
    ],
)
def test_the_inboxs_size_is_shown_by_whose_turn_it_is_and_only_while_it_is_known(shard, turns, may_write, then):
    metrics, writes = Metrics(), [True, may_write]
    maintaining = Maintenance(
        shard, print, Turns(*turns), Gate(), "f:s", Retention(3_600, 3_600), InThisThread(), metrics,
        may_write=lambda: writes.pop(0),
    )  # fmt: skip
    assert shown(metrics) == (None, None, None)
    asyncio.run(maintaining.measure())
    assert shown(metrics) == (1_000, 97_000, 0)
    with contextlib.suppress(TransientError):
        asyncio.run(maintaining.measure())
    assert shown(metrics) == then

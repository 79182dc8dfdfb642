"""Tasks beside the main work: none ends unheard, and what follows from an end is the starter's choice."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shardctl.supervision.background import Background, TaskEndedError, start_thread

log = logging.getLogger("test")


async def forever():
    await asyncio.Event().wait()


async def breaks():
    raise KeyError("a bug")


async def ends():
    pass


def reports(caplog):
    return [record.getMessage() for record in caplog.records if getattr(record, "action", "") == "bug"]


@pytest.fixture(autouse=True)
def nothing_unretrieved(caplog):
    """asyncio's own complaint comes when an exception was lost."""
    caplog.set_level(logging.INFO)
    yield
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize(("work", "error"), [(breaks, KeyError), (ends, TaskEndedError)], ids=["fails", "ends"])
def test_the_end_of_a_needed_task_stops_the_main_work_and_is_raised(caplog, work, error):
    drained = []

    async def main():
        stop = asyncio.Event()
        async with Background(log, stop) as beside:
            beside.need("heart", work())
            beside.need("lungs", forever())
            await stop.wait()
            drained.append(True)

    with pytest.raises(error):
        asyncio.run(main())
    assert drained
    (report,) = reports(caplog)
    assert report.endswith("it ended by a bug: the process stops")


def test_a_needed_task_may_end_after_the_stop(caplog):
    async def main():
        stop = asyncio.Event()
        async with Background(log, stop) as beside:
            beside.need("maintenance", stop.wait())
            beside.need("heart", forever())
            await asyncio.sleep(0)
            stop.set()
            await asyncio.sleep(0)

    asyncio.run(main())
    assert caplog.records == []


def test_the_main_works_own_error_goes_first():
    async def main():
        async with Background(log, stop := asyncio.Event()) as beside:
            beside.need("heart", breaks())
            await stop.wait()
            raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        asyncio.run(main())


def test_a_kept_task_runs_again_and_the_same_bug_is_reported_once(caplog):
    async def main():
        runs, done = 0, asyncio.Event()

        async def work():
            nonlocal runs
            runs += 1
            if runs == 5:
                done.set()
                await forever()
            await breaks()

        async with Background(log) as beside:
            beside.keep("watch", work, 0.0, 0.0)
            await done.wait()

    asyncio.run(main())
    assert reports(caplog) == ["watch: 'a bug'; it ended by a bug: it restarts in 0.0 s"]
    assert "in breaks" in caplog.text


def test_a_kept_task_that_returns_is_done(caplog):
    async def main():
        async with Background(log) as beside:
            await beside.keep("watch", ends)

    asyncio.run(main())
    assert caplog.records == []


def test_a_lone_task_that_fails_is_reported_and_whatever_follows_is_called(caplog):
    async def main():
        left = asyncio.Queue()
        async with Background(log) as beside:
            for work in (breaks, breaks, ends):
                beside.once("request", work(), lambda: left.put_nowait(len(beside)))
            assert len(beside) == 3
            assert [await left.get() for _ in range(3)] == [2, 1, 0]

    asyncio.run(main())
    assert reports(caplog) == ["request: 'a bug'; it ended by a bug"]


def test_a_failure_while_being_cancelled_is_reported_too(caplog):
    async def stubborn():
        try:
            await forever()
        finally:
            await breaks()

    async def main():
        async with Background(log) as beside:
            beside.once("closing", stubborn())
            await asyncio.sleep(0)

    asyncio.run(main())
    assert reports(caplog) == ["closing: 'a bug'; it ended by a bug"]


def test_a_task_cancelled_from_elsewhere_is_an_end(caplog):
    async def main():
        stop = asyncio.Event()
        async with Background(log, stop) as beside:
            beside.need("heart", forever()).cancel()
            await stop.wait()

    with pytest.raises(TaskEndedError):
        asyncio.run(main())


def test_a_threads_end_by_an_exception_is_reported_with_its_traceback(caplog):
    def broken():
        raise KeyError("a bug")

    start_thread("http", broken, log).join(60)
    start_thread("fine", lambda: None, log).join(60)
    assert reports(caplog) == ["thread http: 'a bug'; it ended by a bug"]
    assert "in broken" in caplog.text

"""No message is taken before the database knows of this replica."""

import asyncio

import pytest
from consumer_kit import InThisThread

from consumer.errors import TransientError
from consumer.observability.metrics import Metrics
from consumer.process.startup import Startup


@pytest.mark.slow
def test_it_retries_until_the_database_answers_and_reports_what_it_waits_for():
    async def scenario():
        reasons, answers = [], iter([TransientError("refused"), TransientError("wrong password"), None])

        def report_presence():
            reasons.append(startup.waiting_for)
            if error := next(answers):
                raise error

        startup = Startup([report_presence], InThisThread(), Metrics())
        await startup.wait(asyncio.Event())
        assert reasons == [
            "the database has not answered yet",
            "the database can't be used yet: refused",
            "the database can't be used yet: wrong password",
        ]
        assert startup.waiting_for is None

    asyncio.run(scenario())


def test_it_ends_when_it_must_stop():
    async def scenario():
        stop = asyncio.Event()

        def report_presence():
            stop.set()
            raise TransientError("refused")

        startup = Startup([report_presence], InThisThread(), Metrics())
        await startup.wait(stop)
        assert startup.waiting_for

    asyncio.run(scenario())


def test_a_step_that_fails_keeps_the_later_ones_from_being_tried():
    async def scenario():
        done, answers = [], iter([TransientError("a key that the database gives out"), None])

        def check():
            done.append("check")
            if error := next(answers):
                raise error

        startup = Startup([check, lambda: done.append("presence")], InThisThread(), Metrics())
        await startup.wait(asyncio.Event())
        assert done == ["check", "check", "presence"]

    asyncio.run(scenario())

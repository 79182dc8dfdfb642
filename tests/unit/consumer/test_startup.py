"""No message is taken before the database has answered."""

import asyncio

from consumer_kit import InThisThread

from consumer.errors import AgainError
from consumer.metrics import Metrics
from consumer.startup import Startup


def test_it_asks_until_the_database_answers_and_says_what_it_waits_for():
    async def scenario():
        said, answers = [], iter([AgainError("refused"), AgainError("wrong password"), None])

        def reach():
            said.append(startup.waiting_for)
            if error := next(answers):
                raise error

        startup = Startup(reach, InThisThread(), Metrics())
        await startup.wait(asyncio.Event())
        assert said == [
            "the database has not answered yet",
            "the database has not answered yet: refused",
            "the database has not answered yet: wrong password",
        ]
        assert startup.waiting_for is None

    asyncio.run(scenario())


def test_it_ends_when_told_to_stop():
    async def scenario():
        stop = asyncio.Event()

        def reach():
            stop.set()
            raise AgainError("refused")

        startup = Startup(reach, InThisThread(), Metrics())
        await startup.wait(stop)
        assert startup.waiting_for

    asyncio.run(scenario())

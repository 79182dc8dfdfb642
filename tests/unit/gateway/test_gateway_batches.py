"""A batch's two sides, the one that reads and the one that answers: neither outlives the other."""

from __future__ import annotations

import asyncio

import pytest
from gateway_kit import fleet
from patience import PATIENCE_SECONDS

from shardctl.gateway.auth import Caller
from shardctl.gateway.batches import MAX_RESULTS_HELD, _Batch
from shardctl.gateway.context import GatewayContext


class Topics:
    async def probe(self):
        return None


@pytest.mark.slow
def test_a_bug_in_answering_ends_the_reading_too():
    """It waits for results to be fetched, which nobody will do any more."""
    body = b"not json\n" * (2 * MAX_RESULTS_HELD)

    async def receive():
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(_):
        raise ZeroDivisionError

    async def run():
        desk = GatewayContext(fleet(), Topics(), None)
        async with asyncio.timeout(PATIENCE_SECONDS) as limit:
            with pytest.raises(ZeroDivisionError):
                await _Batch(desk, Caller("anybody"), receive, send).run()
            assert not limit.expired()

    asyncio.run(run())


def test_a_stop_ends_all_reading_though_the_time_of_some_has_just_ended():
    async def read(desk, seconds):
        with pytest.raises(TimeoutError), desk.reading(seconds) as limit:
            async with limit:
                await asyncio.Event().wait()

    async def run():
        desk, stopped = GatewayContext(fleet(), Topics(), None), []
        readers = [asyncio.create_task(read(desk, seconds)) for seconds in (PATIENCE_SECONDS, 0, PATIENCE_SECONDS)]
        await asyncio.sleep(0)  # they read, and the end of the second one's time comes next
        asyncio.get_running_loop().call_soon(lambda: stopped.append(desk.stop()))
        await asyncio.gather(*readers)
        assert stopped == [None]

    asyncio.run(run())

"""When a token is fetched, kept, replaced and given up. The clock is the test's."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from consumer.sinks.http.tokens import LAST_PAUSE_SECONDS, REFUSED_AGAIN_SECONDS, Token, TokenError, Tokens


class Source:
    """Returns `token-1`, `token-2` and so on, each as soon as the test lets it; `error` is raised instead."""

    name = "the source"

    def __init__(self, lifetime_seconds=1_000.0):
        self.lifetime_seconds, self.fetches, self.error = lifetime_seconds, 0, None
        self.free = asyncio.Event()
        self.free.set()

    def check(self):
        pass

    async def fetch(self):
        self.fetches += 1
        number = self.fetches
        await self.free.wait()
        if self.error:
            raise self.error
        return Token(f"token-{number}", self.lifetime_seconds)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def run():
    """Run a test's coroutine, with its tokens and their clock and source."""

    def run(test, **settings):
        async def with_tokens():
            source, clock = Source(**settings), Clock()
            tokens = Tokens(source, clock)
            try:
                await test(tokens, source, clock)
            finally:
                await tokens.close()

        asyncio.run(with_tokens())

    return run


async def turns():
    """Let the tasks that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_calls_at_once_share_one_fetch(run):
    async def test(tokens, source, _):
        source.free.clear()
        waiting = [asyncio.create_task(tokens.header()) for _ in range(20)]
        await turns()
        source.free.set()
        assert set(await asyncio.gather(*waiting)) == {"Bearer token-1"}
        assert source.fetches == 1

    run(test)


def test_a_call_that_gives_up_leaves_the_fetch_to_the_others(run):
    async def test(tokens, source, _):
        source.free.clear()
        first, second = asyncio.create_task(tokens.header()), asyncio.create_task(tokens.header())
        await turns()
        first.cancel()
        source.free.set()
        assert await second == "Bearer token-1"
        assert source.fetches == 1

    run(test)


def test_a_token_is_replaced_ahead_of_its_end_and_no_call_waits_for_that(run):
    async def test(tokens, source, clock):
        await tokens.header()
        clock.now = 799.0
        await tokens.header()
        await turns()
        assert source.fetches == 1
        clock.now = 801.0
        source.free.clear()
        assert await tokens.header() == "Bearer token-1"  # the fetch hangs, and this returned
        await turns()
        assert source.fetches == 2
        source.free.set()
        await turns()
        assert await tokens.header() == "Bearer token-2"

    run(test)


def test_a_token_that_ends_soon_is_not_sent(run):
    async def test(tokens, source, clock):
        await tokens.header()
        clock.now = 995.0
        assert await tokens.header() == "Bearer token-2"

    run(test)


def test_the_present_token_lasts_while_its_source_is_down(run, caplog):
    caplog.set_level(logging.INFO)

    async def test(tokens, source, clock):
        await tokens.header()
        source.error = TokenError("answered 503")
        for clock.now in (801.0, 850.0, 980.0):
            assert await tokens.header() == "Bearer token-1"
            await turns()
        assert "the source answered 503; the present token is used until it ends" in caplog.text
        clock.now = 995.0 + LAST_PAUSE_SECONDS
        with pytest.raises(TokenError, match="the source answered 503"):
            await tokens.header()
        source.error = None
        clock.now += LAST_PAUSE_SECONDS
        assert (await tokens.header()).startswith("Bearer token-")
        assert "the source works again" in caplog.text

    run(test)


def test_a_source_that_fails_is_asked_less_and_less_often(run, caplog):
    async def test(tokens, source, clock):
        source.error = TokenError("answered 503")
        asked = []
        for second in range(600):
            clock.now, before = float(second), source.fetches
            with pytest.raises(TokenError, match="answered 503"):
                await tokens.header()
            asked += [second] if source.fetches > before else []
        pauses = [later - earlier for earlier, later in pairwise(asked)]
        assert pauses[0] <= 2
        assert max(pauses) >= LAST_PAUSE_SECONDS / 2
        assert len(asked) < 30

    run(test)
    assert caplog.text.count("answered 503") == 1


def test_a_refused_token_is_replaced_once(run):
    async def test(tokens, source, clock):
        first = await tokens.header()
        assert tokens.refused(first)
        second = await tokens.header()
        assert second == "Bearer token-2"
        assert tokens.refused(first)  # a call that was on its way with the old one
        assert await tokens.header() == second
        assert not tokens.refused(second)  # another one wouldn't do better
        assert await tokens.header() == second
        clock.now += REFUSED_AGAIN_SECONDS
        assert tokens.refused(second)
        assert await tokens.header() == "Bearer token-3"

    run(test)


def test_a_refused_token_is_not_sent_while_there_is_no_other(run):
    async def test(tokens, source, _):
        header = await tokens.header()
        source.error = TokenError("answered 503")
        assert tokens.refused(header)
        for _ in range(2):
            with pytest.raises(TokenError, match="answered 503"):
                await tokens.header()
        assert source.fetches == 2

    run(test)


def test_a_token_that_has_ended_already_is_none(run):
    async def test(tokens, source, _):
        with pytest.raises(TokenError, match="compare the clocks"):
            await tokens.header()

    run(test, lifetime_seconds=-1.0)


def test_a_source_that_returns_the_same_end_again_is_not_asked_at_each_call(run):
    async def test(tokens, source, clock):
        await tokens.header()
        clock.now = 900.0
        source.lifetime_seconds = 100.0  # the same end as before
        for _ in range(50):
            await tokens.header()
            await turns()
        assert source.fetches == 2

    run(test)


def test_a_bug_of_a_source_is_no_fault_of_a_write_and_shows_no_text(run, caplog):
    async def test(tokens, source, _):
        source.error = KeyError("hush")
        with pytest.raises(TokenError, match="failed by a bug: KeyError at "):
            await tokens.header()

    run(test)
    assert "hush" not in caplog.text

"""Both kinds of lease against what keeps them: an API server over HTTP, and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from lease_kit import LeaseApi, mount
from redis.asyncio import Redis

from consumer.leader.kubernetes import Account, KubernetesLease, client_of
from consumer.leader.leadership import LeaseError
from consumer.leader.redis import RedisLease
from shardctl.errors import UsageError

pytestmark = pytest.mark.slow


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def api():
    with LeaseApi() as server:
        yield server


class Candidates:
    """Leases of one name for several candidates, on one clock."""

    def __init__(self, api, folder):
        self.api, self.account, self.clock = api, Account(mount(folder)), Clock()
        self.clients = []

    def new(self, identity):
        client = httpx.AsyncClient(base_url=self.api.url, trust_env=False)
        self.clients.append(client)
        return KubernetesLease(client, self.account, "shop-s0", identity, 15, self.clock)

    async def close(self):
        for client in self.clients:
            await client.aclose()


def play(api, folder, scenario):
    async def run():
        candidates = Candidates(api, folder)
        try:
            await scenario(candidates)
        finally:
            await candidates.close()

    asyncio.run(run())


def test_the_first_makes_the_lease_and_the_second_finds_it_held(api, tmp_path):
    async def scenario(candidates):
        a, b = candidates.new("a"), candidates.new("b")
        assert await a.hold() == "a"
        assert await b.hold() == "a"
        spec = api.lease()
        assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", 15, 0)
        first = spec["renewTime"]
        assert await a.hold() == "a"
        assert api.lease()["renewTime"] > first
        assert api.lease()["acquireTime"] == spec["acquireTime"]

    play(api, tmp_path, scenario)


def test_a_silent_holder_is_followed_after_the_duration_since_it_was_seen(api, tmp_path):
    async def scenario(candidates):
        b, clock = candidates.new("b"), candidates.clock
        # Its clock is years ahead, and its word counts all the same for as long as it says, and no longer.
        api.put(
            holderIdentity="a", leaseDurationSeconds=15, renewTime="2099-01-01T00:00:00.000000Z", leaseTransitions=7
        )
        assert await b.hold() == "a"
        clock.now += 14.9
        assert await b.hold() == "a"
        clock.now += 0.2
        assert await b.hold() == "b"
        assert (api.lease()["holderIdentity"], api.lease()["leaseTransitions"]) == ("b", 8)

    play(api, tmp_path, scenario)


def test_a_renewal_that_comes_late_counts_from_then(api, tmp_path):
    async def scenario(candidates):
        a, b, clock = candidates.new("a"), candidates.new("b"), candidates.clock
        await a.hold()
        await b.hold()
        clock.now += 10
        await a.hold()
        await b.hold()
        clock.now += 10
        assert await b.hold() == "a"

    play(api, tmp_path, scenario)


def test_given_up_it_is_had_at_once_by_another(api, tmp_path):
    async def scenario(candidates):
        a, b = candidates.new("a"), candidates.new("b")
        await a.hold()
        await b.hold()
        await a.release()
        assert (api.lease()["holderIdentity"], api.lease()["leaseDurationSeconds"]) == ("", 1)
        assert await b.hold() == "b"
        assert api.lease()["leaseTransitions"] == 1
        await a.release()  # it isn't a's any more
        assert api.lease()["holderIdentity"] == "b"

    play(api, tmp_path, scenario)


def test_of_two_that_write_at_once_the_server_takes_one(api, tmp_path):
    async def scenario(candidates):
        leases = [candidates.new(name) for name in "abcdefgh"]
        api.put(holderIdentity="", leaseDurationSeconds=1, leaseTransitions=3)
        api.delay_seconds = 0.02
        holders = await asyncio.gather(*(lease.hold() for lease in leases))
        winner = api.lease()["holderIdentity"]
        assert [name for name, holder in zip("abcdefgh", holders, strict=True) if holder == name] == [winner]
        assert set(holders) <= {winner, ""}
        assert api.lease()["leaseTransitions"] == 4

    play(api, tmp_path, scenario)


def test_of_two_that_make_it_at_once_one_does(api, tmp_path):
    async def scenario(candidates):
        leases = [candidates.new(name) for name in "abcd"]
        api.delay_seconds = 0.02
        await asyncio.gather(*(lease.hold() for lease in leases))
        assert api.lease()["leaseTransitions"] == 0
        assert await leases[0].hold() == api.lease()["holderIdentity"]

    play(api, tmp_path, scenario)


def test_a_holder_that_was_replaced_unseen_finds_out_by_the_version(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        await a.hold()
        api.put(holderIdentity="b", leaseDurationSeconds=15, leaseTransitions=1)
        assert await a.hold() == "b"

    play(api, tmp_path, scenario)


def test_a_lease_that_somebody_deleted_is_made_again(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        await a.hold()
        api.leases.clear()
        assert await a.hold() == "a"
        assert api.lease()["holderIdentity"] == "a"

    play(api, tmp_path, scenario)


def test_a_write_whose_answer_was_lost_is_found_done(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        api.lose_answers = True
        with pytest.raises(LeaseError, match="500"):
            await a.hold()
        api.lose_answers = False
        assert await a.hold() == "a"
        api.lose_answers = True
        with pytest.raises(LeaseError, match="500"):
            await a.hold()
        api.lose_answers = False
        assert await a.hold() == "a"
        assert api.lease()["leaseTransitions"] == 0

    play(api, tmp_path, scenario)


def test_a_token_that_was_replaced_is_the_next_that_is_sent(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        await a.hold()
        api.token = "another"
        with pytest.raises(LeaseError, match="401"):
            await a.hold()
        (tmp_path / "token").write_text("another")
        assert await a.hold() == "a"

    play(api, tmp_path, scenario)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        pytest.param(
            {"status": 403},
            r"403.*\[leases\], verbs \[get, update\] for .* and \[create\]; `shardctl render",
            id="not allowed",
        ),
        pytest.param({"status": 500}, "500: as the test wants it", id="server error"),
        pytest.param({"token": "another"}, "401", id="unknown token"),
    ],
)
def test_a_refusal_is_reported_without_the_token(api, tmp_path, trouble, message):
    async def scenario(candidates):
        for name, value in trouble.items():
            setattr(api, name, value)
        with pytest.raises(LeaseError, match=message) as caught:
            await candidates.new("a").hold()
        assert "let-me-in" not in str(caught.value)

    play(api, tmp_path, scenario)


def test_a_server_that_hangs_ends_with_the_callers_patience(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        await a.hold()
        api.gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await a.hold()
        api.gate.set()
        assert await a.hold() == "a"  # whatever became of the first try

    play(api, tmp_path, scenario)


def test_a_port_without_a_listener_is_reported(api, tmp_path):
    async def scenario(candidates):
        a = candidates.new("a")
        api._server.server_close()
        with pytest.raises(LeaseError, match="doesn't answer"):
            await a.hold()

    play(api, tmp_path, scenario)


def test_outside_of_a_cluster_it_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="KUBERNETES_SERVICE_HOST isn't set"):
        client_of({}, Account(tmp_path))
    with pytest.raises(UsageError, match=r"ca\.crt"):
        client_of({"KUBERNETES_SERVICE_HOST": "127.0.0.1"}, Account(tmp_path))


# --- Redis ------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def redis_leases(url, *identities, milliseconds=60_000):
    async with Redis.from_url(url) as client:
        yield client, [RedisLease(client, "shop:s0", identity, milliseconds) for identity in identities]


def test_redis_one_holds_renews_and_gives_up(redis_url):
    async def scenario():
        async with redis_leases(redis_url, "a", "b") as (client, (a, b)):
            assert await a.hold() == "a"
            assert await b.hold() == "a"
            await client.pexpire("{shop:s0}:leader", 1000)
            assert await a.hold() == "a"
            assert await client.pttl("{shop:s0}:leader") > 1000
            await b.release()  # it isn't b's
            assert await b.hold() == "a"
            await a.release()
            assert await b.hold() == "b"

    asyncio.run(scenario())


def test_redis_a_silent_holders_key_ends_by_itself(redis_url):
    async def scenario():
        async with redis_leases(redis_url, "a", "b", milliseconds=40) as (_, (a, b)):
            assert await a.hold() == "a"
            await asyncio.sleep(0.1)
            assert await b.hold() == "b"
            assert await a.hold() == "b"

    asyncio.run(scenario())


def test_redis_out_of_reach_is_a_lease_error():
    async def scenario():
        async with redis_leases("redis://127.0.0.1:1/0", "a") as (_, (a,)):
            for call in (a.hold, a.release):
                with pytest.raises(LeaseError, match="Redis doesn't answer"):
                    await call()

    asyncio.run(scenario())

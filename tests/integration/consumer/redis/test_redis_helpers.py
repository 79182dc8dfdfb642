"""What else the replicas of a shard share in Redis: the pace, the marks of what is done, the turn to purge."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from consumer_kit import InThisThread, raw
from patience import PATIENCE_SECONDS

from consumer.leader.redis import RedisLease
from consumer.observability.metrics import Metrics
from consumer.redis.breaker import KEYS_A_CALL, RedisBreaker
from consumer.redis.client import connect
from consumer.redis.ratelimit import RateLimit
from consumer.redis.seenfilter import BITS, BUCKET_SECONDS, SeenFilter
from consumer.redis.suspects import Suspects
from consumer.redis.url import parse
from consumer.replica.batch import Batch
from consumer.replica.handle import Handler
from consumer.replica.maintenance import Maintenance
from consumer.replica.pace import MOST_PAGES
from consumer.store.sweep import Retention, Swept
from consumer.store.transaction import Outcome

pytestmark = pytest.mark.slow


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


class Nowhere:
    """Where no Redis is."""

    def client(self):
        return connect(parse("redis://127.0.0.1:1"), PATIENCE_SECONDS)


def play(place, scenario, replicas=2):
    """`scenario` gets a client for each replica, a gate for each, and a clock for all."""

    async def run():
        clock = Clock()
        clients = [place.client() for _ in range(replicas)]
        gates = [RedisBreaker(clock, Metrics()) for _ in clients]
        try:
            return await scenario(clients, gates, clock)
        finally:
            for client in clients:
                await client.aclose()

    return asyncio.run(run())


# --- the pace: how long a limiter is to wait, not how long a test ran ----------------------------------------------------


def limiters(clients, gates, clock, rate, replicas=2):
    stop = asyncio.Event()
    made = [
        RateLimit(client, gate, "f:s", rate, replicas, clock, stop) for client, gate in zip(clients, gates, strict=True)
    ]
    return made, stop


def test_two_replicas_share_one_rate_in_the_order_in_which_they_took(place):
    """At ten a second each batch of ten costs a second, whichever replica takes it; the first second is the burst."""

    async def scenario(clients, gates, clock):
        (first, other), _ = limiters(clients, gates, clock, 10)
        waits = [await limiter._pay(10) for _ in range(10) for limiter in (first, other)]
        assert all(a <= b for a, b in itertools.pairwise(waits))  # first come, first served
        passed = 20 * 10
        took = waits[-1] + 1.0  # and the burst
        assert 0 <= passed / 10 - took < 5  # less what went by while we asked

    play(place, scenario)


def test_what_didnt_pass_is_given_back(place):
    async def scenario(clients, gates, clock):
        (first, other), _ = limiters(clients, gates, clock, 1)
        await first._pay(1_000)
        await first.give_back(400)
        assert 590 < await other._pay(1) < 601
        await other.give_back(10_000)  # nothing that is past comes back
        assert -0.001 <= await other._pay(10) - 9 <= 0.001

    play(place, scenario)


def test_a_pause_saves_up_no_more_than_the_burst(place):
    async def scenario(clients, gates, clock):
        (first, _), _ = limiters(clients, gates, clock, 100)
        await clients[0].set("{f:s}:paid", "5.0")  # long ago
        assert await first._pay(100) <= 0
        assert await first._pay(100) > 0.5

    play(place, scenario)


def test_the_number_is_forgotten_when_it_is_past(place):
    async def scenario(clients, gates, clock):
        (first, _), _ = limiters(clients, gates, clock, 1)
        await first._pay(30)
        async with place.administrator() as administrator:
            assert 29_000 < await administrator.pttl("{f:s}:paid") <= 31_000

    play(place, scenario)


def test_a_stop_ends_the_wait_and_gives_the_turn_back(place):
    async def scenario(clients, gates, clock):
        (first, other), stop = limiters(clients, gates, clock, 1)
        asyncio.get_running_loop().call_later(0.05, stop.set)
        assert await asyncio.wait_for(first.take(1_000), PATIENCE_SECONDS) is False
        assert await other._pay(1) < 2
        assert await first.take(1) is False or await other._pay(0) < 3

    play(place, scenario)


def test_without_redis_each_keeps_to_its_share():
    async def scenario(clients, gates, clock):
        (first, other), _ = limiters(clients, gates, clock, 10, replicas=5)
        assert [await first._pay(2) for _ in range(3)] == pytest.approx([0, 1, 2])  # a fifth of ten a second
        assert await other._pay(2) == pytest.approx(0)
        clock.now += 2
        assert await first._pay(2) == pytest.approx(1)
        clock.now += 100
        assert await first.take(1)

    play(Nowhere(), scenario)


# --- marks of what is done --------------------------------------------------------------------------------------------


def messages(*idents, attempt=2, kind="customer"):
    made = [raw(kind, b"{}", "k", slot=1, ident=ident) for ident in idents]
    for delivery in made:
        delivery.attempt = attempt
    return made


def recents(clients, gates, clock):
    return [SeenFilter(client, gate, "f:s", clock) for client, gate in zip(clients, gates, strict=True)]


def test_what_one_replica_marks_the_other_knows_when_it_comes_again(place):
    async def scenario(clients, gates, clock):
        first, other = recents(clients, gates, clock)
        assert await other.probably_done(messages("a")) == []
        await first.mark(messages("a", "b", attempt=1))
        again = messages("a", "x", "b", "y")
        assert await other.probably_done(again) == [again[0], again[2]]
        assert await other.probably_done(messages("a", attempt=1)) == []  # a first delivery isn't looked up
        assert await other.probably_done(messages("a", attempt=0)) == []  # nor where Pub/Sub doesn't count
        assert await other.probably_done(messages("a", kind="profile")) == []  # a key names one write of each type

    play(place, scenario)


def test_marks_live_for_one_to_two_buckets_and_their_size_is_bounded(place):
    async def scenario(clients, gates, clock):
        first, other = recents(clients, gates, clock)
        await first.mark(messages("0"))
        async with place.administrator() as administrator:
            before = (await administrator.info("commandstats"))["cmdstat_evalsha"]["calls"]
            await first.mark(messages(*map(str, range(10_000))))
            after = (await administrator.info("commandstats"))["cmdstat_evalsha"]["calls"]
            assert after - before >= 10_000 / KEYS_A_CALL
            [key] = await administrator.keys("*")
            assert await administrator.strlen(key) <= BITS // 8
            assert 0 < await administrator.ttl(key) <= 2 * BUCKET_SECONDS
        clock.now += BUCKET_SECONDS
        assert len(await other.probably_done(messages(*map(str, range(10_000))))) == 10_000
        clock.now += BUCKET_SECONDS
        assert await other.probably_done(messages("1")) == []

    play(place, scenario)


class Shard:
    """An inbox that knows some keys."""

    def __init__(self, *recorded):
        self.recorded, self.asked, self.applied = set(recorded), [], []

    def known(self, deliveries):
        self.asked += [delivery.idempotency_key for delivery in deliveries]
        return {delivery for delivery in deliveries if delivery.idempotency_key in self.recorded}

    def apply(self, deliveries):
        self.applied += [delivery.idempotency_key for delivery in deliveries]
        return Outcome(applied=len(deliveries))


class Others:
    """Locks, dead letters and acks that are fine with anything."""

    def __init__(self):
        self.acked = []

    async def take(self, slots):
        return frozenset(slots)

    async def release(self, slots):
        pass

    async def publish(self, deliveries):
        pass

    async def ack(self, deliveries):
        self.acked += [delivery.idempotency_key for delivery in deliveries]


def handle(recent, shard, batch):
    others, metrics = Others(), Metrics()
    handler = Handler(others, shard, others, others, others, InThisThread(), metrics, recent=recent)
    return handler.handle(Batch(batch, (1,))), others, metrics


def test_a_redelivery_is_acked_by_the_word_of_the_inbox_alone(place):
    """`lie` is marked and not recorded, as after a fail-over of the database: it is written like any other."""

    async def scenario(clients, gates, clock):
        first, other = recents(clients, gates, clock)
        await first.mark(messages("done", "lie"))
        shard = Shard("done", "unmarked")
        work, others, metrics = handle(other, shard, [*messages("done", "lie", "new"), *messages("first", attempt=1)])
        await work
        assert shard.asked == ["done", "lie"]
        assert shard.applied == ["lie", "new", "first"]
        assert sorted(others.acked) == ["done", "first", "lie", "new"]
        assert metrics.registry.get_sample_value("shardctl_messages_duplicate_total") == 1

    play(place, scenario)


def test_without_redis_everything_goes_to_the_inbox():
    async def scenario(clients, gates, clock):
        first, _ = recents(clients, gates, clock)
        shard = Shard("done")
        work, others, _ = handle(first, shard, messages("done", "new"))
        await work
        assert (shard.asked, shard.applied, others.acked) == ([], ["done", "new"], ["done", "new"])

    play(Nowhere(), scenario)


# --- the turn to purge ------------------------------------------------------------------------------------------------


RETENTION = Retention(3_600, 7_200)


class Inbox:
    """Pages to walk through; records who purges when."""

    def __init__(self, pages, meanwhile=lambda: None):
        self.pages, self.chunks, self.meanwhile = pages, 0, meanwhile

    def purge(self, retention, at, pages):
        assert retention == RETENTION
        self.chunks += 1
        self.meanwhile()
        end = (at or 0) + pages
        return Swept(1, 0, over=True) if end >= self.pages else Swept(1, end, over=False)

    def end_outgrown_logs(self):
        return 0

    def delete_ended_logs(self):
        return False

    def forget_replicas(self, silent_seconds):
        pass

    def released_keys(self):
        return []


def maintainer(shard, client, gate, threads):
    return Maintenance(shard, print, client, gate, "f:s", RETENTION, threads, Metrics())


def test_one_replica_purges_in_chunks_to_the_end_of_the_inbox(place):
    async def scenario(clients, gates, clock):
        inbox = Inbox(10 * MOST_PAGES + 5)
        with ThreadPoolExecutor(2) as threads:
            first, other = (
                maintainer(inbox, client, gate, threads) for client, gate in zip(clients, gates, strict=True)
            )
            await asyncio.gather(first.purge(), other.purge())
            chunks = inbox.chunks
            assert chunks >= 11  # more where the machine is slow: the chunks are smaller then
            whose = await clients[0].get("{f:s}:purge")
            loser = other if whose.decode() == first._token else first
            await loser.purge()  # it purges when the lock of this purge is released
            assert inbox.chunks == chunks
            await clients[0].delete("{f:s}:purge")
            await loser.purge()
            assert inbox.chunks > chunks

    play(place, scenario)


def test_a_replica_that_lost_its_turn_stops_purging(place):
    """It was delayed for longer than its lock lives, and another replica holds the lock now."""

    async def scenario(clients, gates, clock):
        loop = asyncio.get_running_loop()
        steal = lambda: asyncio.run_coroutine_threadsafe(clients[1].set("{f:s}:purge", "another"), loop).result()  # noqa: E731
        inbox = Inbox(10 * MOST_PAGES, meanwhile=steal)
        with ThreadPoolExecutor(1) as threads:
            await maintainer(inbox, clients[0], gates[0], threads).purge()
        assert inbox.chunks == 1
        assert await clients[0].get("{f:s}:purge") == b"another"

    play(place, scenario)


def test_without_redis_nobody_purges():
    async def scenario(clients, gates, clock):
        inbox = Inbox(5_000)
        await maintainer(inbox, clients[0], gates[0], InThisThread()).purge()
        assert inbox.chunks == 0

    play(Nowhere(), scenario)


# --- notes of messages that a process handles alone, and the lease of a leader ------------------------------------------


def test_a_process_that_died_is_counted_by_the_next_one(place):
    async def scenario(clients, gates, clock):
        first, other = (Suspects(client, gate, "f:s") for client, gate in zip(clients, gates, strict=True))
        await first.begin("m")
        await first.begin("m")
        assert await other.deaths("m") == 2
        await other.survived("m")
        assert await first.deaths("m") == 0
        assert not any(gate.shut for gate in gates)

    play(place, scenario)


def test_one_candidate_holds_the_lease_until_it_gives_it_up(place):
    async def scenario(clients, gates, clock):
        first, other = (RedisLease(client, "f:s", name, 60_000) for client, name in zip(clients, "ab", strict=True))
        assert [await first.hold(), await other.hold(), await first.hold()] == ["a", "a", "a"]
        await other.release()
        assert await other.hold() == "a"
        await first.release()
        assert await other.hold() == "b"

    play(place, scenario)

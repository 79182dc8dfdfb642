"""What a load would need, against plain counting and a simulation second by second."""

import math
import random
import re
from collections import Counter
from functools import cache

import pytest
from fleets import fleet as fleet_of
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples

from shardctl import capacity
from shardctl.capacity import Cost, Load, Speed, simulate, slot_rates
from shardctl.cli import main
from shardctl.fleet import topology
from shardctl.fleet.settings.consuming import LONE_SHARE


@cache
def fleet(*slots):
    return fleet_of(slots or ("0-511", "512-1023"))


@pytest.mark.parametrize("skew", [0, 0.7, 1.0, 1.4])
@pytest.mark.parametrize("keys", [1, 50, 5_000])
def test_rates_are_those_that_counting_gives(skew, keys):
    load = Load(100, keys, skew, key_format="k{}")
    weights = {f"k{n}": 1 / (n + 1) ** skew for n in range(keys)}
    total, wanted = sum(weights.values()), Counter()
    for key, weight in weights.items():
        wanted[fleet().routing.rule.slot_of(key)] += 100 * weight / total
    assert slot_rates(fleet(), load) == pytest.approx([wanted[slot] for slot in range(1 << 10)])


@pytest.mark.parametrize("skew", [0, 0.5, 1.0, 2.0])
def test_the_keys_that_are_not_hashed_count_too(monkeypatch, skew):
    load = Load(1_000, 40_000, skew)
    exact = slot_rates(fleet(), load)
    monkeypatch.setattr(capacity, "COUNTED_KEYS", 5_000)
    near = slot_rates(fleet(), load)
    assert math.fsum(near) == pytest.approx(1_000)
    assert near.index(max(near)) == exact.index(max(exact)) or skew == 0
    assert max(near) == pytest.approx(max(exact), rel=0.3)


@examples(0.3)
@given(st.integers(1, 5_000), st.floats(0, 3))
def test_the_sum_of_zipf(count, skew):
    assert capacity._harmonic(count, skew) == pytest.approx(math.fsum(n**-skew for n in range(1, count + 1)), rel=1e-6)


@examples(0.5)
@given(st.floats(1, 1_000), st.floats(1, 100_000), st.floats(0, 3_000), st.floats(0, 3_000))
def test_an_outage_drains_as_second_by_second(rate, backlog, before, after):
    after = max(before, after)
    seconds, left, second = capacity._drain_seconds(rate, backlog, before, after), backlog, 0
    if seconds is None:
        assert after <= rate
        return
    assume(seconds < 3_000)
    while left > 1e-6 and second < 2 * seconds + 10:
        left -= (before if second < capacity.SCALE_DELAY_SECONDS else after) - rate
        second += 1
    assert second == pytest.approx(seconds, abs=1.01)


FREE = Cost(0.0, 0.0, 0.01)  # so that the speed of a replica alone decides


def test_replicas_keep_below_their_speed():
    simulation = simulate(fleet(), Load(1_400, 100_000, 0), Speed(500, 500), 60, FREE)
    assert [shard.replicas for shard in simulation.shards] == [
        math.ceil(shard.writes_per_second / 350) for shard in simulation.shards
    ]
    assert simulation.fits
    assert [shard.backlog for shard in simulation.shards] == [
        round(shard.writes_per_second * 60) for shard in simulation.shards
    ]


@pytest.mark.parametrize(("cpu", "cpu_percent"), [("500m", 70), ("1", 70), ("1500m", 70), ("1", 35)])
@pytest.mark.parametrize("rate", [20, 200, 2_000])
def test_the_cpu_target_is_a_part_of_what_a_pod_requests(cpu, cpu_percent, rate):
    """As an autoscaler of Kubernetes counts utilization."""
    more = (
        f"resources: {{cpu: '{cpu}', cpu_limit: '2'}}\nautoscaling: {{min: 1, max: 100, cpu_percent: {cpu_percent}}}\n"
    )
    single = fleet_of(("0-1023",), more=more)
    cost = Cost(0.004, 0.000_4, 0.01)
    (need,) = simulate(single, Load(rate, 10_000, 0), Speed(1e6, 1e6), 60, cost).shards
    target = float(cpu.removesuffix("m")) / (1_000 if cpu.endswith("m") else 1) * cpu_percent / 100

    def cores(replicas):
        return capacity.cores_of(rate / replicas, single.consumer, cost)

    assert need.replica_cores == pytest.approx(cores(need.replicas))
    assert need.replica_cores <= target
    assert need.replicas == 1 or cores(need.replicas - 1) > target


@pytest.mark.parametrize("rate", [5, 40, 100, 1_000, 50_000])
@pytest.mark.parametrize("age_ms", [0, 20, 50])
def test_batches_are_as_large_as_those_of_a_consumer_played_through(rate, age_ms):
    batching = fleet().consumer.model_copy(update={"batch_max_age_ms": age_ms, "batch_max_rows": 100, "concurrency": 2})
    cost = Cost(0.0, 0.0, batch_seconds=0.01)
    least, pause = cost.batch_seconds / batching.concurrency, age_ms / 1_000
    draw, now, next_at, waiting, batches, messages = random.Random(4), 0.0, 0.0, 0, 0, 20_000

    def leave(moment):
        share = LONE_SHARE if waiting == 1 else 1
        return batches + 1, 0, moment + max(share * pause, least)

    for _ in range(messages):
        arrives = now + draw.expovariate(rate)
        if waiting and next_at <= arrives:  # what waited has left
            batches, waiting, next_at = leave(next_at)
        now, waiting = arrives, waiting + 1
        if now >= next_at or waiting >= batching.batch_max_rows:
            batches, waiting, next_at = leave(now)
    assert capacity.batch_rows(rate, batching, cost) == pytest.approx(messages / batches, rel=0.03)


@examples(0.5)
@given(st.floats(0.1, 1e5), st.integers(1, 50))
def test_more_replicas_take_less_cpu_each_and_more_together(rate, replicas):
    batching, cost = fleet().consumer, Cost(0.004, 0.000_4, 0.01)
    fewer, more = (capacity.cores_of(rate / count, batching, cost) for count in (replicas, replicas + 1))
    assert more <= fewer * (1 + 1e-9)
    assert more * (replicas + 1) >= fewer * replicas * (1 - 1e-9)


def test_the_inbox_keeps_each_write_for_its_retention():
    retaining = fleet_of((["slots: 0-511", "consumer: {inbox_retention: 50d}"], "512-1023"))
    simulation = simulate(retaining, Load(100, 100_000, 0), Speed(1e4, 1e4), 60)
    kept = [50 * 86_400, topology.redelivery_reach(retaining).total_seconds()]
    assert [shard.inbox_rows for shard in simulation.shards] == [
        round(shard.writes_per_second * seconds) for shard, seconds in zip(simulation.shards, kept, strict=True)
    ]
    assert (
        simulation.inbox_bytes == sum(shard.inbox_rows for shard in simulation.shards) * capacity.INBOX_BYTES_PER_WRITE
    )


def test_an_even_load_goes_to_a_shard_by_its_slots_and_types():
    by_type = fleet_of((["slots: 0-255", "types: [a]"], ["slots: 0-255", "except_types: [a]"], "256-1023"), types="abc")
    rates = [capacity.even_rate(by_type, shard, 900) for shard in by_type.shards]
    assert rates == pytest.approx([900 / 4 / 3, 900 / 4 * 2 / 3, 900 * 3 / 4])
    many_keys = simulate(by_type, Load(900, 20_000, 0), Speed(1e4, 1e4), 0)
    assert rates == pytest.approx([shard.writes_per_second for shard in many_keys.shards], rel=0.05)


def test_what_does_not_fit_is_reported():
    simulation = simulate(fleet(), Load(100_000, 100_000, 0), Speed(1_000, 500), 60)
    assert all(shard.capped and shard.replicas == 10 and shard.drain_seconds is None for shard in simulation.shards)
    assert not simulation.fits
    simulation = simulate(fleet(), Load(1_000, 10, 2.0), Speed(1_000, 300), 60)
    assert [slot for slot, _ in simulation.hot_slots] == [fleet().routing.rule.slot_of("0")]


def test_a_rebalance_by_load_is_tried():
    simulation = simulate(fleet("0-99", "100-1023"), Load(1_000, 50_000, 0.2), Speed(1e4, 5e3), 60)
    assert simulation.levelled.slots_moved > 300
    assert simulation.levelled.before == pytest.approx(max(shard.writes_per_second for shard in simulation.shards))
    assert simulation.levelled.after < 550
    assert simulate(fleet("0-1023"), Load(1, 1), Speed(1, 1), 1).levelled is None


def test_volume_counts_each_subscription():
    simulation = simulate(fleet(), Load(1_000, 10, 0, body_bytes=780), Speed(1e4, 1e4), 0)
    a_month = 1_000 * 1_000 * capacity.MONTH_SECONDS / 2**40
    assert simulation.published_tib == pytest.approx(a_month)
    assert simulation.delivered_tib == pytest.approx(3 * a_month)  # two shards and strays
    assert simulation.usd == pytest.approx(4 * a_month * 40)
    tiny = simulate(fleet(), Load(1_000, 10, 0, body_bytes=0), Speed(1e4, 1e4), 0)
    assert tiny.published_tib == pytest.approx(a_month), "Pub/Sub charges 1,000 bytes a request"
    assert (
        simulate(fleet(), Load(1_000, 10, 0, body_bytes=0, publish_batch=10), Speed(1e4, 1e4), 0).published_tib
        < a_month / 4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "1", "--type", "nope=1"], "isn't among message_types"),
        (["--rate", "1", "--type", "customer=x"], "Give TYPE=SHARE"),
        (["--rate", "1", "--type", "customer=-1"], "must be more than 0"),
        (["--rate", "1", "--key-format", "same"], "--key-format wants {}"),
        (["--rate", "1", "--key-format", "{"], "makes no keys"),
        (["--rate", "1", "--key-format", "{x}"], "makes no keys"),
        (["--rate", "inf"], "'--rate'"),
        (["--rate", "1", "--outage", "soon"], "a duration is a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_meant(capsys, options, message):  # on the shipped file
    assert main(["simulate", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_exit_code_reports_whether_the_load_fits(capsys):
    assert main(["simulate", "--rate", "1000"]) == 0
    out, _ = capsys.readouterr()
    assert "Pub/Sub a month" in out
    assert "The inboxes keep each write" in out
    assert len(re.findall(r" [\d,]{9,} +[\d.]+ GiB$", out, re.MULTILINE)) == 3  # each shard's inbox, in rows and bytes
    assert main(["simulate", "--rate", "1000000", "--json"]) == 1
    out, err = capsys.readouterr()
    assert '"fits": false' in out
    assert "can't keep up" in err


def test_drawn_writes_agree_with_the_law():
    """What the local run of the e2e test is held against."""
    draw, load = random.Random(5), Load(1, 300, 1.0)
    drawn = draw.choices(range(300), [1 / (n + 1) for n in range(300)], k=30_000)
    counts = Counter(fleet().routing.rule.slot_of(str(key)) for key in drawn)
    rates = slot_rates(fleet(), load)
    assert counts.most_common(1)[0][0] == rates.index(max(rates))

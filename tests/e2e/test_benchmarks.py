"""The benchmarks run, and print what they promise: the figures of small runs say nothing, so none is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.proof]

ROOT = Path(__file__).parents[2]
CPU = {f"{role}_cpu_us_per_msg" for role in ("consumer", "postgres", "broker", "redis", "total")}
COSTS = CPU | {
    *("msgs_per_s", "mean_batch_rows", "cpu_elsewhere"),
    *("wal_bytes_per_msg", "wal_image_bytes_per_msg", "inbox_bytes_per_row"),
}
COMPARED = {"naive_msgs_per_s", "naive_total_cpu_us_per_msg", "times_naive", "naive_cpu_ratio"}
FIGURES_OF_COPIES = ("rows_per_s", "cpu_us_per_row", "python_cpu_us_per_row")
COMMIT = {"commit_p50_ms", "commit_p99_ms", "published_late_ms"}


def bench(name, *options):
    command = [sys.executable, "-m", f"bench.{name}", "--json", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_backlog_beside_the_sketch():
    (figures,) = bench("pipeline", "--messages", "2000").values()
    assert figures.keys() == COSTS | COMPARED | {"peak_rss_mib", "rss_growth_mib"}


def test_steady_loads_with_an_empty_inbox_and_a_full_one():
    options = ("--rate", "20", "--rate", "40", "--seconds", "2", "--inbox-rows", "5000", "--without-naive")
    cases = bench("pipeline", *options)
    assert list(cases) == [
        *("20/s", "20/s, 5,000 old rows", "20/s, ratio"),
        *("40/s", "40/s, 5,000 old rows", "40/s, ratio"),
        "cost curve",
    ]
    assert cases["20/s"].keys() == COSTS | COMMIT
    assert cases["cost curve"].keys() == {"batch_cpu_us", "message_cpu_us"}


def test_the_idle_path():
    figures = bench("latency", "--seconds", "1")
    parts = ("answered", "taken", "sent", "committed", "acked", "call_to_commit", "call_to_ack", "database_alone")
    named = {f"{part}_p{percent}_ms" for part in parts for percent in (50, 99)}
    assert figures.keys() == named | {"writes", "rate", "times_database_alone"}
    assert figures["writes"] == 10


def test_the_inbox_alone():
    figures = bench("inbox", "--rows", "500", "--seconds", "0.05")
    a_write = {"heap_bytes", "index_bytes", "bytes", "disordered_bytes", "wal_bytes", "full_wal_bytes"}
    rates = {"writes_per_s", "full_writes_per_s", "full_ratio", "swept_writes_per_s", "swept_ratio"}
    assert figures.keys() == a_write | rates | {"forgotten", "forgotten_per_s", "old_rows"}
    assert figures["old_rows"] == 500


def test_the_outbox():
    figures = bench("outbox", "--writes", "500", "--rate", "20", "--seconds", "1")
    latencies = {f"{name}_p{percent}_ms" for name in ("relay", "direct") for percent in (50, 99)}
    assert figures.keys() == latencies | {
        *("enqueue_us", "naive_writes_per_s", "writes_per_s", "ratio", "latency_ratio"),
    }


def test_copies_of_slots():
    figures = bench("copying", "--slot-rows", "500", "--inbox-rows", "700", "--rounds", "1")
    of_ways = {f"{way}_{figure}" for way in ("copy", "bare") for figure in FIGURES_OF_COPIES}
    assert figures.keys() == of_ways | {"rate_ratio", "cpu_ratio", "rows", "cpu_elsewhere"}
    assert figures["rows"] == 2 * 500 + 2 * 700


def test_a_rebalance_of_large_slots():
    figures = bench("rebalance", "--slot-rows", "5000", "--inbox-rows", "6000", "--rate", "100")
    assert (figures["anomalies"], figures["slots_moved"]) == (0, 2)
    assert 2 * 11_000 <= figures["rows_copied"] < 3 * 11_000
    assert figures["copy_rows_per_s"] > figures["rows_copied"] / figures["run_s"]

"""Half a minute of trouble for each of some seeds; `python -m tests.chaos` does it for as long as you like."""

import os

import pytest

from shardctl.local.servers import BinaryMissingError
from tests.chaos.faults import EVERY_FAULT, FAULTS
from tests.chaos.report import Plan, Report
from tests.chaos.run import run
from tests.chaos.watch import Screen, explain

SEEDS = (19, 26)  # between them their schedules have every fault
SECONDS = 25.0
MOVING_SEED = 9628  # kills the first run half-way, a consumer too, and has messages come again
MOVING_SECONDS = 20.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a fleet that is stuck is waited for, and then told in full


@pytest.mark.parametrize("seed", SEEDS)
def test_trouble_costs_time_and_never_a_write(seed, tmp_path):
    report = _judged(Plan(seed, SECONDS, tuple(FAULTS), tmp_path, writes_per_second=300))
    assert report.counts["writes"] == report.counts["acknowledged"] == 300 * SECONDS
    assert report.counts["delivered"] > report.counts["acked"], "nothing was ever redelivered: the test proves nothing"


def test_slots_that_move_meanwhile_cost_no_write_either(tmp_path):
    report = _judged(Plan(MOVING_SEED, MOVING_SECONDS, tuple(EVERY_FAULT), tmp_path, 100, rebalance=True))
    assert report.counts["writes"] == report.counts["acknowledged"] > 80 * MOVING_SECONDS
    assert report.counts["rebalances"] >= 1
    assert report.counts["slots moved"] >= 16
    assert report.counts["commands killed"] >= 1, "nothing happened to the run: the test proves nothing"
    assert report.counts["second copies"] > 0


def _judged(plan: Plan) -> Report:
    try:
        with Screen() as screen:
            report = run(plan, screen)
    except BinaryMissingError as missing:
        if os.environ.get("CI"):
            raise  # there a skipped test is a hole that nobody sees
        pytest.skip(str(missing))
    assert report.ok, explain(report)
    return report

import pytest

from shardctl.local.board import Board, ShardStanding, Standing, line
from shardctl.local.processes import read_metrics

APPLIED = "shardctl_messages_applied_total"


def test_metrics_are_read_with_label_values_summed_up():
    text = """# HELP shardctl_messages_applied_total Writes.
# TYPE shardctl_messages_applied_total counter
shardctl_messages_applied_total 12.0
shardctl_messages_applied_created 1.7e+09
shardctl_messages_dead_lettered_total{reason="bad_json"} 2.0
shardctl_messages_dead_lettered_total{reason="no_row"} 3.0
shardctl_batch_rows_bucket{le="1.0"} 4.0
shardctl_batch_rows_sum 40.0
"""
    assert read_metrics(text) == {
        APPLIED: 12.0,
        "shardctl_messages_dead_lettered_total": 5.0,
        "shardctl_batch_rows_sum": 40.0,
    }


@pytest.mark.parametrize(
    ("looks", "grown"),
    [
        ([10, 25], 25),
        ([10, 3], 13),
        ([10, None, 12], 12),
        ([None, None], 0),
    ],
    ids=["it works", "started again, it counts from nothing", "it didn't answer once", "it never answers"],
)
def test_applied_writes_add_up_over_restarts(looks, grown):
    board = Board(local=None)
    assert sum(board._growth("r", {} if look is None else {APPLIED: look}) for look in looks) == grown


def test_a_line_says_what_is_wrong():
    shard = ShardStanding("s0", 512, 1_234, 5.0, 99, 3.2, ready=1, replicas=2)
    told = line(Standing((shard,), redis_up=False, without_locks=1, dead_letters=2, strays=3, restarts=4))
    assert told == (
        "s0 1/2 ready, backlog 1,234, applied 99 (3/s)   "
        "redis down (1 replicas work without locks)   dead letters 2   strays 3   restarts 4"
    )

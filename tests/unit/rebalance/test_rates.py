"""What a plan predicts: how long slots are closed, and how long the whole move takes."""

import pytest

from shardctl.rebalance.bases import FEW_ROWS
from shardctl.rebalance.planning.rates import (
    OTHERS_SECONDS,
    PAUSE_SECONDS,
    POSTGRESQL_SECONDS,
    RowsToCopy,
    expected_seconds,
    longest_pause_seconds,
)

BETWEEN_POSTGRESQL, BETWEEN_OTHERS = POSTGRESQL_SECONDS[0], OTHERS_SECONDS[0]


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        (RowsToCopy({}), 0),
        (RowsToCopy({1: 1_000_000}, seconds=POSTGRESQL_SECONDS), 0),
        (RowsToCopy({1: 1_000_000, 2: 100}, seconds=POSTGRESQL_SECONDS), 100 * BETWEEN_POSTGRESQL),
        (RowsToCopy(dict.fromkeys(range(200), 1_000), seconds=POSTGRESQL_SECONDS), 4_000 * BETWEEN_POSTGRESQL),
        (RowsToCopy({1: FEW_ROWS}), 0),
        (RowsToCopy({1: 1_000_000, 2: 100}, ("a trigger",)), 1_000_000 * BETWEEN_OTHERS),
        (RowsToCopy(dict.fromkeys(range(9), 1_000), ("a trigger",)), 4_000 * BETWEEN_OTHERS),
    ],
    ids=[
        "nothing to copy",
        "a large slot is copied ahead",
        "a small one beside it is not",
        "small slots share a transaction, as many as move at once",
        "the smallest slot that is copied ahead",
        "a large slot that is copied in its pause",
        "small slots that could not be copied ahead",
    ],
)
def test_the_longest_pause(rows, seconds):
    assert longest_pause_seconds(rows) == pytest.approx(PAUSE_SECONDS + seconds)


def test_rows_take_less_time_between_postgresql_databases():
    rows = RowsToCopy({1: 1_000_000}, compared=1_000_000)
    fast = RowsToCopy({1: 1_000_000}, compared=1_000_000, seconds=POSTGRESQL_SECONDS)
    assert expected_seconds(1, 0, fast) < expected_seconds(1, 0, rows)
    assert expected_seconds(1, 0, None) < expected_seconds(1, 0, fast)

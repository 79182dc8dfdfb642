import pytest

from shardctl.rebalance.planning.quotas import bounds, drained, fair_parts, filled


def test_parts_go_by_weight():
    assert fair_parts([8, 0, 4], [1, 1, 2]) == [3, 3, 6]


@pytest.mark.parametrize(
    ("have", "amount", "levels"),
    [([10, 4, 4], 3, [7, 7, 7]), ([10, 4, 4], 6, [4, 4, 4]), ([10, 4, 4], 9, [3, 3, 3]), ([5, 5], 0, [5, 5])],
    ids=["the fullest alone", "down to the next", "all", "nothing"],
)
def test_the_fullest_are_drained_first(have, amount, levels):
    assert drained(have, [1] * len(have), amount) == levels


@pytest.mark.parametrize(
    ("have", "amount", "levels"), [([2, 6, 6], 2, [4, 4, 4]), ([2, 6, 6], 7, [7, 7, 7])], ids=["the emptiest", "all"]
)
def test_the_emptiest_are_filled_first(have, amount, levels):
    assert filled(have, [1] * len(have), amount) == levels


@pytest.mark.parametrize(
    ("target", "tolerance", "expected"),
    [(100, 0.05, (95, 105)), (3.5, 0, (3, 4)), (3, 0, (3, 3)), (3.0000000001, 0, (3, 3)), (0.4, 0.05, (0, 1))],
)
def test_whole_numbers_beside_the_target_always_do(target, tolerance, expected):
    assert bounds(target, tolerance, whole=True) == expected

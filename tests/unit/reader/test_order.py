"""Rows of several databases in one order, also where the databases are of two kinds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import column

from shardctl.reader.order import Order, Part

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC)


def part(shard, values, *, nulls_are_largest):
    return Part(shard, values, [(value,) for value in values], nulls_are_largest)


@pytest.mark.parametrize(
    ("by", "postgresql", "mariadb", "merged"),
    [
        (column("n"), [2, 5, None], [None, 1, 3], [None, 1, 2, 3, 5, None]),
        (column("n").desc(), [None, 5, 2], [3, 1, None], [None, 5, 3, 2, 1, None]),
        (column("n"), [2, 5], [1, 3], [1, 2, 3, 5]),
    ],
    ids=["rising", "falling", "no NULL"],
)
def test_values_of_two_kinds_of_database_are_merged_by_value(by, postgresql, mariadb, merged):
    """Each puts NULLs at the end of its own choice."""
    parts = [part("s0", postgresql, nulls_are_largest=True), part("s1", mariadb, nulls_are_largest=False)]
    assert Order([by], None).merge(parts) == merged
    assert Order([by], 2).merge(parts) == merged[:2]


def test_a_time_without_a_zone_is_utc():
    """MariaDB gives it so, and PostgreSQL with its zone."""
    aware, naive = NOON, (NOON + timedelta(seconds=1)).replace(tzinfo=None)
    parts = [part("s0", [aware], nulls_are_largest=True), part("s1", [naive], nulls_are_largest=False)]
    assert Order([column("n").desc()], 1).merge(parts) == [naive]

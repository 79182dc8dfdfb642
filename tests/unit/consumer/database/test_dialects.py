"""Timestamps are read as every database reads them."""

from __future__ import annotations

import pytest

from consumer.database.dialects import moment_of, utc_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02", "2026-01-02 00:00:00+00:00"),
        ("2026-01-02T03:04", "2026-01-02 03:04:00+00:00"),
        ("2026-01-02 03:04:05", "2026-01-02 03:04:05+00:00"),
        ("2026-01-02T03:04:05.1Z", "2026-01-02 03:04:05.100000+00:00"),
        ("2026-01-02T03:04:05.999999999Z", "2026-01-02 03:04:06+00:00"),
        ("2026-01-02T03:04:05-05:30", "2026-01-02 08:34:05+00:00"),
        ("2026-01-02T03:04:05 Z", "None"),
        ("2026-01-02T25:04:05Z", "None"),
        ("٢٠٢٦-01-02", "None"),
    ],
)
def test_moments(text, expected):
    assert str(moment_of(text)) == expected


def test_a_time_as_text_is_in_utc_with_microseconds():
    assert utc_text("2026-01-02T03:04:05.1234567-05:30") == "2026-01-02 08:34:05.123457"
    assert (utc_text(None), utc_text("yesterday")) == (None, None)

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from letter_kit import OURS, US, WRITE, letter

from shardctl.deadletter.choice import Choice, moment_us
from shardctl.errors import UsageError

LETTER = letter(WRITE | OURS)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (Choice(), True),
        (Choice(ids=frozenset({"99"})), True),
        (Choice(ids=frozenset({"17"})), True),
        (Choice(ids=frozenset({"1"})), False),
        (Choice(type="thing", shard="s0", reason="constraint", key=WRITE["partition_key"]), True),
        (Choice(type="timed"), False),
        (Choice(shard="s1"), False),
        (Choice(reason="no_row"), False),
        (Choice(key="else"), False),
        (Choice(since_us=US, until_us=US + 1), True),
        (Choice(since_us=US + 1), False),
        (Choice(until_us=US), False),
    ],
)
def test_a_choice(choice, taken):
    assert choice.takes(LETTER) is taken


def test_an_empty_id_takes_no_letter_whose_first_id_is_unknown():
    by_pubsub = replace(LETTER, original_id="")
    assert not Choice(ids=frozenset({""})).takes(by_pubsub)
    assert Choice(ids=frozenset({by_pubsub.id})).takes(by_pubsub)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("3d ago", datetime(2026, 1, 28, 12, tzinfo=UTC)),
        ("90s", datetime(2026, 1, 31, 11, 58, 30, tzinfo=UTC)),
        ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T00:00:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T02:00:00+02:00", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time(text, moment):
    assert moment_us("--since", text, NOW) == int(moment.timestamp() * 1e6)


@pytest.mark.parametrize("text", ["", "yesterday", "2 h 3", "-2h", "2026-13-01T00:00:00Z", "9999999d"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="--until"):
        moment_us("--until", text, NOW)

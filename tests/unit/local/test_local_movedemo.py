"""What `shardctl demo --rebalance` says in the end. What it does is in the end-to-end tests."""

import dataclasses
import json

import pytest

from shardctl.cli.outcome import tell_move
from shardctl.errors import EXIT_DONE, EXIT_REFUSED
from shardctl.local.movedemo import Report

VERIFIED = Report(
    verified=True,
    seed=1,
    slots_before={"s0": 16, "s1": 16},
    slots_after={"s0": 11, "s1": 11, "s2": 10},
    slots_moved=10,
    slots_moved_minimum=10,
    writes=1_000,
    published=1_020,
    publisher_duplicates=20,
    redelivered=7,
    applied=1_000,
    dead_letters=0,
    strays=0,
    restarts=0,
    seconds={"run": 4.2},
    pause={"slots": 9, "p50": 0.1, "p99": 0.3, "max": 0.4},
    closed={"slots": 10, "p50": 0.2, "p99": 0.5, "max": 0.5},
    unmoved_pause={"slots": 22, "p50": 0.1, "p99": 0.2, "max": 0.2},
    unmoved_rate_before=75.0,
    unmoved_rate_during=74.0,
    unmoved_rate_ratio=0.987,
    differences={},
    examples=(),
)
WRONG = dataclasses.replace(
    VERIFIED,
    verified=False,
    differences={"reordered": 2},
    examples=("reordered: s2: customers c-1: …",),
    kept_in="build/run-1",
)
UNTIMED = dataclasses.replace(VERIFIED, pause=None, closed=None, unmoved_pause=None, unmoved_rate_ratio=None)


def test_a_verified_move_is_reported_with_its_pauses(capsys):
    assert tell_move(VERIFIED, as_json=False) == EXIT_DONE
    out = capsys.readouterr().out
    assert "s2                -           10" in out
    assert "10 slots moved; no plan moves fewer than 10." in out
    assert "0.10 s at the median, 0.30 s at p99, 0.40 s at most from publish to commit (9 slots" in out
    assert "75 writes/s before, 74 while slots moved, which is 0.99 of that" in out
    assert "Verified: all 1,000 writes took effect once and in order" in out


def test_databases_that_keep_no_times_have_no_pauses(capsys):
    assert tell_move(UNTIMED, as_json=False) == EXIT_DONE
    out = capsys.readouterr().out
    assert "publish to commit" not in out
    assert "Slots that stayed" not in out


@pytest.mark.parametrize("as_json", [False, True])
def test_a_difference_is_a_refusal_and_names_examples(capsys, as_json):
    assert tell_move(WRONG, as_json=as_json) == EXIT_REFUSED
    streams = capsys.readouterr()
    assert "reordered: s2: customers c-1" in streams.out
    assert "kept in build/run-1" in streams.err
    if as_json:
        assert json.loads(streams.out)["differences"] == {"reordered": 2}
    else:
        assert "NOT VERIFIED: 2 reordered." in streams.out

"""Trouble is reported when it begins, when its kind changes and when it ends; and a bug is never hidden behind it."""

from __future__ import annotations

import logging

import pytest

from shardctl.supervision import trouble
from shardctl.supervision.trouble import REMIND_SECONDS, Trouble

log = logging.getLogger("test")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def met(clock, caplog):
    caplog.set_level(logging.INFO)
    return Trouble("the database", log, "away", clock)


def lines(caplog):
    return [(record.levelname, record.action, record.getMessage()) for record in caplog.records]


def raised(error, place="first"):
    """The error with a traceback from one of two places."""
    try:
        if place == "first":
            first(error)
        second(error)
    except KeyError as caught:
        return caught


def first(error):
    raise error


def second(error):
    raise error


def test_the_same_trouble_is_reported_once_and_so_is_its_end(met, caplog):
    for _ in range(5):
        met.met(OSError("no answer"), "it is asked again")
    met.over("answers", "back")
    met.over("answers", "back")
    assert lines(caplog) == [
        ("WARNING", "away", "the database: no answer; it is asked again"),
        ("INFO", "back", "the database: answers, after 5 failures"),
    ]
    assert met.failures == 0


def test_another_kind_is_reported_and_the_first_that_returns_is_not(met, caplog):
    for text in ("403: no", "403: no", "503: busy", "403: no", "503: busy"):
        met.met(OSError(text), "again")
    met.met(ValueError("503: busy"), "again")
    assert [message for _, _, message in lines(caplog)] == [
        "the database: 403: no; again",
        "the database: 503: busy; again",
        "the database: 503: busy; again",
    ]


def test_trouble_that_ended_is_reported_when_it_recurs(met, caplog):
    for _ in range(2):
        met.met(OSError("no answer"), "again")
        met.over()
    assert [level for level, *_ in lines(caplog)] == ["WARNING", "INFO"] * 2


def test_numbers_of_processes_and_transactions_make_no_new_kind(met, caplog):
    for number in range(5):
        met.met(OSError(f"process {number + 10_000} waits for {hex(number)}"), "again")
    assert len(lines(caplog)) == 1


def test_a_bug_is_reported_with_its_traceback_behind_expected_trouble(met, caplog):
    met.met(OSError("no answer"), "again")
    met.met(raised(KeyError("x")), "again", bug=True)
    assert [level for level, *_ in lines(caplog)] == ["WARNING", "ERROR"]
    assert "in first" in caplog.text


def test_bugs_differ_by_where_they_were_raised_and_not_by_what_they_say(met, caplog):
    for number in range(5):
        met.met(raised(KeyError(number)), "again", bug=True)
    met.met(raised(KeyError(0), "second"), "again", bug=True)
    assert len(lines(caplog)) == 2


def test_a_bug_that_comes_and_goes_fills_no_log(met, caplog):
    for _ in range(100):
        met.met(raised(KeyError("x")), "again", bug=True)
        met.over()
    assert [level for level, *_ in lines(caplog)].count("ERROR") == 1


def test_what_goes_on_is_reported_again_with_how_often_it_was_not(met, clock, caplog):
    for _ in range(3):
        met.met(OSError("no answer"), "again")
    clock.now = REMIND_SECONDS
    met.met(OSError("no answer"), "again")
    assert lines(caplog)[-1][2] == "the database: no answer (2 times more since this was reported); again"


def test_what_is_remembered_is_bounded(met):
    for number in range(trouble.MAX_KINDS * 3):
        met.met(OSError("x" * number), "again")
    assert len(met._kinds) == trouble.MAX_KINDS

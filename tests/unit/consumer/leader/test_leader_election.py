"""Who leads, for how long, and when to ask again: pure rules."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.leader.election import Election, Times
from consumer.leader.record import Observed, Record

TIMES = Times(15, 10, 2)
NOON = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


def leader(asked_at=0.0, now=0.0):
    made = Election(TIMES, 0)
    made.held(asked_at, now, "me")
    return made


def test_a_leader_goes_on_for_the_renew_deadline_from_when_it_asked():
    election = leader(asked_at=5, now=8)
    assert election.ends_at == 15
    assert not election.expire(14.9)
    assert election.expire(15)
    assert not election.leading
    assert not election.expire(99)  # once


def test_an_answer_that_came_too_late_is_none():
    """The process was frozen between its request and the answer: others may lead by now."""
    assert not leader(asked_at=0, now=10).leading


def test_a_leader_stands_down_when_another_has_the_lease():
    election = leader()
    election.taken(1, "other")
    assert (election.leading, election.holder) == (False, "other")


@pytest.mark.parametrize(
    ("election", "now", "patience"),
    [
        pytest.param(Election(TIMES, 0), 0, 5, id="standby"),
        pytest.param(leader(), 0, 5, id="leader"),
        pytest.param(leader(), 8, 2, id="leader, near the deadline"),
        pytest.param(leader(), 12, 0, id="leader, past it"),
    ],
)
def test_one_try_never_outlasts_the_deadline_and_leaves_time_for_another(election, now, patience):
    assert election.patience(now) == patience


@pytest.mark.parametrize(
    ("election", "now", "chance", "pause"),
    [
        pytest.param(Election(TIMES, 0), 0, 0, 2, id="standby"),
        pytest.param(Election(TIMES, 0), 0, 1, 4.4, id="standby, unlucky"),
        pytest.param(leader(), 0, 1, 2, id="leader"),
        pytest.param(leader(), 9, 1, 1, id="leader, near the deadline"),
    ],
)
def test_standbys_ask_at_different_moments_and_leaders_in_time(election, now, chance, pause):
    assert election.pause(now, chance) == pytest.approx(pause)


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_counts_from_when_it_was_first_seen_whatever_its_times_say():
    observed, record = Observed(), Record("other", 15, "2000-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z")
    observed.see(record, 100)
    observed.see(record, 110)
    assert observed.counts(114.9)
    assert not observed.counts(115)
    observed.see(record.taken_by("other", 15, NOON), 115)  # it was only slow
    assert observed.counts(129.9)


@pytest.mark.parametrize("record", [None, Record("", 15), Record("", 1, "t", "t", 3)])
def test_a_lease_that_nobody_holds_is_free_at_once(record):
    observed = Observed()
    if record:
        observed.see(record, 0)
    assert not observed.counts(0)


@pytest.mark.parametrize(
    ("before", "transitions"),
    [
        pytest.param(Record(), 1, id="one that nobody has held"),
        pytest.param(Record("me", 15, "then", "then", 4), 4, id="renewed"),
        pytest.param(Record("other", 15, "then", "then", 4), 5, id="taken"),
        pytest.param(Record("", 1, "then", "then", 4), 5, id="given up before"),
    ],
)
def test_a_transition_is_counted_with_each_new_holder(before, transitions):
    after = before.taken_by("me", 15, NOON)
    assert (after.holder, after.transitions, after.renewed) == ("me", transitions, "2026-01-02T03:04:05.000006Z")
    assert after.acquired == ("then" if before.holder == "me" else after.renewed)


def test_a_given_up_lease_is_as_client_go_leaves_it():
    spec = Record("me", 15, "then", "then", 4).given_up(NOON).spec()
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("", 1, 4)


@given(st.data())
def test_no_two_candidates_ever_lead_at_once_however_slow_and_however_their_clocks_began(data):
    """Candidates on clocks of their own, answers lost or late: who is refused never leads, and the lease outlasts its leader.

    The server takes each write at a moment between asking and hearing.
    """
    names = ("a", "b", "c")
    offset = {name: data.draw(st.integers(-1000, 1000), name) for name in names}
    elections = {name: Election(TIMES, offset[name]) for name in names}
    observed = {name: Observed() for name in names}
    record, now = Record(), 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from(names))
        now += data.draw(st.sampled_from([0.0, 0.5, 1, 2, 5, 9]))
        asked = now
        election = elections[name]
        observed[name].see(record, asked + offset[name])
        if record.holder not in ("", name) and observed[name].counts(asked + offset[name]):
            election.taken(asked + offset[name], record.holder)
        else:
            record = Record(name, 15, "", str(now), record.transitions)
            now += data.draw(st.sampled_from([0.0, 0.5, 3, 12]))
            if data.draw(st.booleans()):
                election.held(asked + offset[name], now + offset[name], name)
        for candidate in names:
            elections[candidate].expire(now + offset[candidate])
        assert sum(election.leading for election in elections.values()) <= 1

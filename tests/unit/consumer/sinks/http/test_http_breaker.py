"""The breaker on a clock of our own, held against a plain account of what happened."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumer.sinks.http.breaker import Breaker

FAILURES, OPEN = 3, 10.0


def opened(now=0.0):
    breaker = Breaker(FAILURES, OPEN)
    for _ in range(FAILURES):
        breaker.failed(breaker.permit(now), now)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row():
    breaker = Breaker(FAILURES, OPEN)
    for _ in range(5):  # a success between them, and they aren't in a row
        breaker.failed(breaker.permit(0), 0)
        breaker.failed(breaker.permit(0), 0)
        breaker.succeeded(breaker.permit(0))
    assert breaker.closed
    assert not opened().closed
    assert opened().permit(9.9) is None


def test_one_call_probes_and_decides():
    breaker = opened()
    probe = breaker.permit(10)
    assert probe.probe
    assert breaker.permit(10) is None
    breaker.failed(probe, 11)
    assert breaker.permit(20.9) is None
    again = breaker.permit(21)
    breaker.succeeded(again)
    assert breaker.closed
    assert not breaker.permit(21).probe


def test_a_probe_that_was_given_up_is_made_again():
    breaker = opened()
    breaker.give_back(breaker.permit(10), 10)
    assert breaker.permit(10) is None
    assert breaker.permit(20).probe


def test_a_call_that_began_before_it_opened_says_nothing():
    breaker = Breaker(FAILURES, OPEN)
    slow, slower = breaker.permit(0), breaker.permit(0)
    for _ in range(FAILURES):
        breaker.failed(breaker.permit(0), 0)
    breaker.succeeded(slow)
    assert not breaker.closed
    probe = breaker.permit(10)
    breaker.failed(slower, 10)
    breaker.succeeded(probe)
    assert breaker.closed


class Calls(RuleBasedStateMachine):
    """Any order of calls, answers and time."""

    @initialize()
    def begin(self):
        self.breaker, self.now, self.out = Breaker(FAILURES, OPEN), 0.0, []
        self.row, self.opened_at = 0, None  # what we expect

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def call(self):
        permit = self.breaker.permit(self.now)
        probing = any(permit.probe for permit in self.out)
        may = self.opened_at is None or (self.now >= self.opened_at + OPEN and not probing)
        assert (permit is not None) == may
        if permit:
            assert permit.probe == (self.opened_at is not None)
            self.out.append(permit)

    @rule(data=st.data(), ok=st.booleans())
    def answer(self, data, ok):
        if not self.out:
            return
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        counts = permit.probe or permit.state == self.breaker._state
        if ok:
            self.breaker.succeeded(permit)
        else:
            self.breaker.failed(permit, self.now)
        if not counts:
            return
        self.row = 0 if ok else self.row + 1
        if ok and permit.probe:
            self.opened_at = None
        if not ok and (permit.probe or self.row >= FAILURES):
            self.opened_at, self.row = self.now, 0

    @invariant()
    def never_two_probes(self):
        assert sum(permit.probe for permit in self.out) <= 1

    @invariant()
    def it_is_closed_when_we_think_so(self):
        assert self.breaker.closed == (self.opened_at is None)


TestCalls = Calls.TestCase

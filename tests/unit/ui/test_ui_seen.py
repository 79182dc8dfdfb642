"""The time line of the looks of one server."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from status_kit import WORKING, settled

from shardctl.status.history import DEAD, LAG, SPAN_SECONDS, WRITES
from shardctl.status.report import Unknown, assemble
from shardctl.ui.seen import STEP_SECONDS, Seen

BEGAN = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def look(seconds, **work):
    """A look after some seconds, in which s0's consumers report `work`."""
    counted = {"s0": replace(WORKING, **work)} if work else {}
    return assemble(settled(), BEGAN + timedelta(seconds=seconds), {}, Unknown("no broker"), counted)


def lines(*looks):
    seen = Seen()
    for report in looks:
        seen.add(report)
    past = seen.history()
    assert past.step_seconds == STEP_SECONDS
    return {figure.name: figure.values for figure in past.figures}


def test_a_step_without_an_answer_is_a_gap():
    step = STEP_SECONDS
    figures = lines(
        look(0, writes_per_second=2.0),
        look(1, writes_per_second=4.0),
        look(step),
        look(3 * step, writes_per_second=0.0),
    )
    assert figures[WRITES] == {"s0": (3.0, None, None, 0.0)}
    assert figures[DEAD] == {"s0": (0, None, None, 0)}
    assert figures[LAG] == {"s0": (None,) * 4}, "the broker never answered"


def test_an_hour_is_kept():
    moments = (0, STEP_SECONDS, SPAN_SECONDS)
    figures = lines(*(look(seconds, writes_per_second=float(seconds)) for seconds in moments))
    values = figures[WRITES]["s0"]
    assert (len(values), values[0], values[-1]) == (SPAN_SECONDS // STEP_SECONDS, STEP_SECONDS, SPAN_SECONDS)


@pytest.mark.parametrize("looks", [(), (look(0),)], ids=["none", "nothing known"])
def test_without_an_answer_there_is_no_line(looks):
    assert all(values == {} for values in lines(*looks).values())

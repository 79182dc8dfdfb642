from io import StringIO

import pytest
from rich.console import Console

from shardctl.local.pauses import Commit, Pauses, rate, waits
from shardctl.local.slotmap import SlotMap, line, picture


@pytest.mark.parametrize(
    ("commits", "pauses"),
    [
        ([], None),
        ([Commit(1, 10.0, 10.5)], Pauses(1, 0.5, 0.5, 0.5)),
        ([Commit(1, 10.0, 10.5), Commit(1, 11.0, 11.25), Commit(2, 11.0, 12.0)], Pauses(2, 0.5, 1.0, 1.0)),
        ([Commit(1, 9.9, 12.0), Commit(1, 20.1, 25.0), Commit(3, 11.0, 19.0)], None),
        ([Commit(slot, 10.0, 10.0 + slot) for slot in range(1, 3)] * 2, Pauses(2, 1.0, 2.0, 2.0)),
    ],
    ids=["none", "one", "the longest of each slot", "before, after and another slot", "two"],
)
def test_a_slot_waits_as_long_as_its_longest_write(commits, pauses):
    assert waits(commits, {1, 2}, 10.0, 20.0) == pauses


def test_percentiles_are_values_that_occurred():
    pauses = waits([Commit(slot, 0.0, slot / 100) for slot in range(200)], range(200), 0.0, 1.0)
    assert pauses == Pauses(200, 0.99, 1.97, 1.99)


def test_a_rate_counts_what_was_committed_in_a_time():
    commits = [Commit(1, 0.0, at / 10) for at in range(100)]
    assert rate(commits, {1}, 2.0, 4.0) == pytest.approx(10)
    assert rate(commits, {2}, 2.0, 4.0) == 0


BEFORE = SlotMap(8, ("a", "b"), dict.fromkeys(range(4), "a") | dict.fromkeys(range(4, 8), "b"))
DURING = SlotMap(8, ("a", "b", "c"), {0: "a", 1: "a", 2: "c", 4: "b", 5: "b", 6: "b", 7: "b"})


def test_a_map_shows_who_holds_what_and_what_has_moved():
    assert line(BEFORE) == "a 0-3   b 4-7"
    assert line(DURING) == "a 0-1   b 4-7   c 2"
    assert line(SlotMap(2, ("a",), {})) == "a none"
    assert DURING.moved_since(BEFORE) == 1


@pytest.mark.parametrize(("slots", "columns", "rows"), [(8, 8, 1), (1024, 64, 16), (65_536, 64, 16)])
def test_a_picture_has_a_cell_for_each_slot_up_to_a_screenful(slots, columns, rows):
    console = Console(file=StringIO(), width=100)
    console.print(picture(SlotMap(slots, ("a",), dict.fromkeys(range(slots - 1), "a")), "now"))
    head, *drawn = console.file.getvalue().splitlines()
    assert head.split() == ["now", "■", "a", f"{slots - 1:,}", "■", "under", "way", "1"]
    assert [len(row.rstrip()) for row in drawn] == [columns] * rows

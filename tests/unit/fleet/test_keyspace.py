"""Slots and sets of slots, against Python's own sets and hashes."""

import json
import re
from datetime import UTC, date, datetime, timedelta, timezone
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.fleet.keyspace import SlotRule, SlotSet, bucket_of, digits_of, slot_of, slot_of_digits, slot_of_time

BITS = 6
EPOCH = date(1970, 1, 1)
subsets = st.frozensets(st.integers(0, (1 << BITS) - 1))
ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "docs" / "slot-vectors.json").read_text())


@given(subsets, subsets)
def test_slot_sets_are_sets(left, right):
    mine, theirs = SlotSet.of(left), SlotSet.of(right)
    assert set(mine | theirs) == left | right
    assert set(mine & theirs) == left & right
    assert set(mine - theirs) == left - right
    assert len(mine) == len(left)
    assert all((slot in mine) == (slot in left) for slot in range(1 << BITS))
    assert (mine == theirs) == (left == right)


@given(subsets)
def test_ranges_are_sorted_disjoint_and_dont_touch(slots):
    ranges = SlotSet.of(slots).ranges
    assert all(first <= last for first, last in ranges)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(ranges))


@given(subsets.filter(bool))
def test_text_round_trips(slots):
    assert SlotSet.parse(str(SlotSet.of(slots))) == SlotSet.of(slots)


@given(subsets)
def test_prefixes_select_exactly_the_slots(slots):
    prefixes = SlotSet.of(slots).prefixes(BITS)
    selected = [slot for slot in range(1 << BITS) for prefix in prefixes if digits_of(slot, BITS).startswith(prefix)]
    assert sorted(selected) == sorted(slots)  # each by one prefix alone
    assert list(prefixes) == sorted(prefixes)


@given(subsets)
def test_prefixes_are_the_fewest(slots):
    def fewest(prefix):
        """By definition: a subtree that is wholly in takes one; else its halves take what they take."""
        universe = set(SlotSet.of_prefix(prefix, BITS))
        if universe <= slots:
            return 1
        return 0 if len(prefix) == BITS else fewest(prefix + "0") + fewest(prefix + "1")

    assert len(SlotSet.of(slots).prefixes(BITS)) == fewest("")


@pytest.mark.parametrize(
    ("text", "slots"),
    [("5", [5]), ("0-3", [0, 1, 2, 3]), (" 7 , 1 - 2 ", [1, 2, 7]), ("0-1,2-3", [0, 1, 2, 3]), ("9,8", [8, 9])],
)
def test_parse(text, slots):
    assert list(SlotSet.parse(text)) == slots


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither a slot number nor a range"),
        ("5-3", "runs backwards"),
        ("0-341,341", "names a slot twice"),
        ("0-9,3-4", "names a slot twice"),
        ("010", "neither"),
        ("1,,2", "neither"),
        ("-5", "neither"),
        ("0x10", "neither"),
        ("٣", "neither"),
        ("1.5", "neither"),
        ("0-99999999999999999999999", "beyond 65535"),
    ],
)
def test_parse_refuses(text, reason):
    with pytest.raises(ValueError, match=reason):
        SlotSet.parse(text)


@given(st.integers(1, 16), st.data())
def test_digits_round_trip(slot_bits, data):
    slot = data.draw(st.integers(0, (1 << slot_bits) - 1))
    digits = digits_of(slot, slot_bits)
    assert len(digits) == slot_bits
    assert slot_of_digits(digits, slot_bits) == slot


@pytest.mark.parametrize("digits", ["", "0", "01010101010", "01010101x0", "\u0660\u0661" * 5, "0101010 01"])
def test_malformed_digits_are_no_slot(digits):
    assert slot_of_digits(digits, 10) is None


def test_vectors_are_plenty():
    assert len(VECTORS["keys"]) >= 30
    assert {vector["slot_bits"] for vector in VECTORS["keys"]} == {1, 8, 10, 16}
    assert {vector["unit"] for vector in VECTORS["times"]} == {"hour", "day", "week", "month"}


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda v: f"{v['key'][:12]}-{v['slot_bits']}")
def test_key_vectors(vector):
    digest = sha256(vector["key"].encode("utf-8")).hexdigest()
    digits = "".join(f"{int(nibble, 16):04b}" for nibble in digest)[: vector["slot_bits"]]
    assert (vector["slot"], vector["digits"]) == (int(digits, 2), digits)
    assert slot_of(vector["key"], vector["slot_bits"]) == vector["slot"]


@pytest.mark.parametrize("vector", VECTORS["times"], ids=lambda v: f"{v['time']}-{v['unit']}")
def test_time_vectors(vector):
    moment = datetime.fromisoformat(vector["time"])
    assert bucket_of(moment, vector["unit"]) == vector["bucket"] == counted(moment.astimezone(UTC), vector["unit"])
    assert slot_of_time(moment, vector["unit"], vector["slot_bits"]) == vector["slot"]
    assert vector["slot"] == vector["bucket"] % 2 ** vector["slot_bits"]


def counted(moment, unit):
    """The bucket by the calendar, without arithmetic on seconds."""
    day = moment.date().toordinal() - EPOCH.toordinal()
    if unit == "week":
        monday = moment.date() - timedelta(days=moment.isoweekday() - 1)
        return (monday - date(1969, 12, 29)).days // 7
    return {"hour": day * 24 + moment.hour, "day": day, "month": moment.year * 12 + moment.month - 1 - 1970 * 12}[unit]


def test_a_bucket_is_counted_in_utc():
    tokyo = timezone(timedelta(hours=9))
    assert bucket_of(datetime(2026, 1, 1, 8, 59, tzinfo=tokyo), "day") == bucket_of(
        datetime(2025, 12, 31, tzinfo=UTC), "day"
    )


def documented(language, name):
    """The block of docs/producers.md that defines this function."""
    page = (ROOT / "docs" / "producers.md").read_text()
    return next(block for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if f"{name}(" in block)


def test_the_documented_python_gives_the_vectors():
    names = {}
    exec(documented("python", "def slot_digits"), names)
    exec(documented("python", "def modulo_slot_digits"), names)
    for vector in VECTORS["keys"]:
        assert names["slot_digits"](vector["key"], vector["slot_bits"]) == vector["digits"]
    for vector in VECTORS["modulo_keys"]:
        digits = names["modulo_slot_digits"](vector["key"], vector["modulo"], vector["slot_bits"])
        assert digits == vector["digits"]


def test_the_code_of_other_languages_is_that_of_the_examples():
    page = ROOT / "docs" / "producers.md"
    shown = re.findall(
        r"^\[\S+\]\((\.\./examples/\S+)\):\n\n```\w+\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert [Path(path).suffix for path, _ in shown] == [".go", ".java", ".js"]
    for path, code in shown:
        assert code == (page.parent / path).read_text(), path


@pytest.mark.parametrize("vector", VECTORS["modulo_keys"], ids=lambda v: f"{v['key']}%{v['modulo']}-{v['slot_bits']}")
def test_modulo_vectors(vector):
    slot = SlotRule(vector["slot_bits"], vector["modulo"]).slot_of(vector["key"])
    assert (slot, digits_of(slot, vector["slot_bits"])) == (vector["slot"], vector["digits"])


@given(st.integers(2, 64), st.integers(0, 10**18 - 1))
def test_a_modulo_keeps_remainders_together(modulo, key):
    rule = SlotRule(10, modulo)
    first, end = rule.run_of(key % modulo)
    assert first <= rule.slot_of(str(key)) < end


@pytest.mark.parametrize("modulo", range(2, 65))
def test_the_runs_of_a_modulo_are_the_slots_and_nearly_even(modulo):
    runs = [SlotRule(10, modulo).run_of(remainder) for remainder in range(modulo)]
    assert [first for first, _ in runs] == [0, *(end for _, end in runs[:-1])]
    assert runs[-1][1] == 1 << 10
    lengths = [end - first for first, end in runs]
    assert max(lengths) <= 1.25 * min(lengths)


def test_within_a_run_the_hash_decides_and_uses_every_slot():
    rule = SlotRule(8, 3)
    first, end = rule.run_of(1)
    assert {rule.slot_of(str(key)) for key in range(1, 6_000, 3)} == set(range(first, end))


@pytest.mark.parametrize("key", ["", "x", "-1", "+1", "007", "1.0", " 1", "1" * 19, "\u0661"])
def test_a_modulo_wants_plain_numbers(key):
    with pytest.raises(ValueError, match="whole number"):
        SlotRule(10, 4).slot_of(key)

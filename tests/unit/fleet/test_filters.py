"""Compiled filters, judged by an evaluator of their grammar that shares no code with the compiler."""

import random

import pytest
from filter_eval import parse
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples

from shardctl.fleet.filters import (
    MAX_FILTER_BYTES,
    FilterAttributes,
    beginnings,
    compile_filter,
    shard_filter,
    strays_filter,
)
from shardctl.fleet.keyspace import SlotSet, digits_of

BITS = 5
subsets = st.frozensets(st.integers(0, (1 << BITS) - 1), min_size=1)
# Texts that a producer may send for a slot: right, cut, too long, decimal, or anything at all.
wild = st.one_of(
    st.text("01", max_size=BITS + 2),
    st.builds(str, st.integers(0, 2000)),
    st.builds(lambda head, tail: head + tail, st.text("01", max_size=BITS), st.text(max_size=3)),
)


@given(subsets, st.text("01", max_size=2))
def test_a_filter_takes_its_slots_and_no_others(slots, within):
    text = shard_filter(SlotSet.of(slots), BITS, within=within)
    if len(text.encode()) <= MAX_FILTER_BYTES and any(digits_of(slot, BITS).startswith(within) for slot in slots):
        takes = parse(text)
        for slot in range(1 << BITS):
            digits = digits_of(slot, BITS)
            if digits.startswith(within):
                assert takes({"slot": digits}) == (slot in slots)


def padded(text):
    """The slot that a text stands for where filters are complete: its leading digits, cut or padded with zeros."""
    digits = text[: len(text) - len(text.lstrip("01"))]
    return int(digits[:BITS].ljust(BITS, "0"), 2)


@given(subsets, wild)
def test_a_complete_filter_takes_malformed_slots_by_the_padding_rule(slots, text):
    compiled = compile_filter(SlotSet.of(slots), BITS)
    assume(compiled.padded)
    expected = text.startswith(("0", "1")) and padded(text) in slots
    assert parse(compiled.text)({"slot": text}) == compiled.takes_slot(text) == expected


@pytest.mark.slow
@given(subsets, wild)
def test_takes_slot_is_what_the_text_does(slots, text):
    compiled = compile_filter(SlotSet.of(slots), BITS)
    if len(compiled.text.encode()) <= MAX_FILTER_BYTES:
        assert parse(compiled.text)({"slot": text}) == compiled.takes_slot(text)


@pytest.mark.parametrize("slots", ["0", "3-5", "0-341", "342-682", "683-1023", "1-1022", "0-99,200-299", "7,9,11"])
def test_no_filter_that_fits_in_any_plain_form_is_too_long(slots):
    """The forms anyone would write by hand: prefixes joined by OR, and everything but the rest's prefixes."""
    mine, everything = SlotSet.parse(slots), SlotSet.all(10)
    plain = " OR ".join(f'hasPrefix(attributes.slot,"{p}")' for p in mine.prefixes(10))
    rest = " OR ".join(f'hasPrefix(attributes.slot,"{p}")' for p in (everything - mine).prefixes(10))
    complement = f'(hasPrefix(attributes.slot,"0") OR hasPrefix(attributes.slot,"1")) AND NOT ({rest})'
    size = len(shard_filter(mine, 10))
    assert size <= max(MAX_FILTER_BYTES, min(len(plain), len(complement)))


@given(st.frozensets(st.integers(0, 1023), min_size=1, max_size=40), st.sampled_from([("a",), ("a", "bb"), ()]))
def test_a_filter_that_is_too_long_is_no_longer_than_the_plain_forms(slots, types):
    mine = SlotSet.of(slots)
    compiled = compile_filter(mine, 10, types=types)
    assume(not compiled.padded and len(mine.ranges) <= 12)
    clause = " OR ".join(f'attributes.message_type="{name}"' for name in types)
    suffix = len(clause) + len(" AND ") + 2 * (len(types) > 1) if types else 0
    plain = " OR ".join(f'hasPrefix(attributes.slot,"{p}")' for p in mine.prefixes(10))
    rest = " OR ".join(f'hasPrefix(attributes.slot,"{p}")' for p in (SlotSet.all(10) - mine).prefixes(10))
    complement = f'(hasPrefix(attributes.slot,"0") OR hasPrefix(attributes.slot,"1")) AND NOT ({rest})'
    assert len(compiled.text) <= len(plain) + suffix + 2 * bool(types)
    assert len(compiled.text) <= len(complement) + suffix


def shortest_by_search(bits):
    """For each subset of slots under a node, the least total length of OR terms, by trying every way to build it."""
    names, costs = 'hasPrefix(attributes.slot,"")', {}

    def prefix_cost(prefix):
        return len(names) + len(prefix)

    def cost(prefix, slots):
        key = prefix, slots
        if key not in costs:
            universe = frozenset(SlotSet.of_prefix(prefix, bits))
            if not slots:
                costs[key] = 0
            elif slots == universe:
                costs[key] = prefix_cost(prefix) + 4
            else:
                halves = [frozenset(SlotSet.of_prefix(prefix + digit, bits)) for digit in "01"]
                split = sum(cost(prefix + digit, slots & half) for digit, half in zip("01", halves, strict=True))
                holes = SlotSet.of(universe - slots).prefixes(bits)
                inside = sum(prefix_cost(hole) for hole in holes) + 4 * (len(holes) - 1) + 2 * (len(holes) > 1)
                costs[key] = min(split, prefix_cost(prefix) + len(" AND NOT ") + inside + 2 + 4)
        return costs[key]

    return cost


def test_the_shortest_form_is_the_shortest_of_its_kind():
    from shardctl.fleet.filters import _shortest

    cost, bits = shortest_by_search(4), 4
    names = FilterAttributes()
    for number in random.Random(7).sample(range(1, 1 << 16), 400):
        slots = frozenset(slot for slot in range(1 << bits) if number >> slot & 1)
        from shardctl.fleet.filters import _or_length

        for within in ("0", "1"):
            mine = SlotSet.of(slots) & SlotSet.of_prefix(within, bits)
            terms = _shortest(mine, bits, within, names)
            assert sum(_or_length(names, term) for term in terms) == cost(within, frozenset(mine))


@pytest.mark.parametrize(
    ("attribute", "path"),
    [
        ("slot", "attributes.slot"),
        ("ce-type", "attributes.ce-type"),
        ("_x", "attributes._x"),
        ("1st", 'attributes."1st"'),
        ("-x", 'attributes."-x"'),
        ("NOT", 'attributes."NOT"'),
        ("a.b", 'attributes."a.b"'),
        ('q"\\', 'attributes."q\\"\\\\"'),
        ("é", 'attributes."é"'),
    ],
)
def test_attribute_names_are_quoted_where_the_grammar_wants_it(attribute, path):
    names = FilterAttributes(attribute, "t")
    assert names.slot_path == path
    assert parse(shard_filter(SlotSet.all(2), 2, names=names))({attribute: "01"})


def test_types_are_bracketed():
    text = shard_filter(SlotSet.parse("0-1,3"), 2, types=["a", "b"])
    takes = parse(text)
    assert takes({"slot": "00", "message_type": "a"})
    assert not takes({"slot": "00", "message_type": "c"})
    assert not takes({"slot": "10", "message_type": "a"})
    assert not takes({"slot": "00"})


def test_except_types_take_what_has_no_type():
    takes = parse(shard_filter(SlotSet.all(2), 2, except_types=["a", "b"]))
    assert takes({"slot": "00"})
    assert not takes({"slot": "00", "message_type": "b"})


@pytest.mark.parametrize(
    ("attributes", "stray"),
    [
        ({}, True),
        ({"slot": ""}, True),
        ({"slot": "x"}, True),
        ({"slot": "01"}, True),
        ({"slot": "011"}, False),
        ({"slot": "11"}, True),
        ({"slot": "0100", "message_type": "z"}, False),
    ],
    ids=str,
)
def test_strays_on_a_topic_of_its_own_prefix(attributes, stray):
    assert parse(strays_filter(["01"], within="01"))(attributes) is stray


def test_strays_by_type():
    takes = parse(strays_filter(types=["a", "b"]))
    assert takes({"slot": "0000", "message_type": "z"})
    assert takes({"slot": "0000"})
    assert not takes({"slot": "0000", "message_type": "b"})


def test_beginnings():
    assert beginnings(["00", "010", "011", "1"]) == ("0", "01")
    assert beginnings(["0100", "0101"], within="01") == ("01", "010")


@pytest.mark.slow
@examples(0.2)
@given(st.sampled_from([16]), st.integers(2, 5))
def test_scattered_slots_compile_fast(bits, step):
    """Nobody's filter, but the way to a good error must not take minutes."""
    assert len(shard_filter(SlotSet.of(range(0, 1 << bits, step)), bits)) > MAX_FILTER_BYTES

"""Editing the text of shards.yaml: every style of YAML, and what doesn't change stays byte for byte."""

import re

import pytest
from fleets import HEAD, TYPE
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from shardctl.fleet import scaffold, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError
from shardctl.rebalance.planning.edit import EditError, edited, settled
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request

TOP = HEAD + "message_types:\n" + TYPE.format(name="a") + TYPE.format(name="b")
REQUESTS = [
    Request(add=("new",)),
    Request(add=("n1", "n2"), tolerance=0.3),
    Request(remove=("s0",)),
    Request(remove=("s2",)),
    Request(split="s1", into="new"),
]
BLOCK = """\
shards:
  # the first
  - name: s0   # north
    slots: 0-351   # a third
    database: {name: d0, key: url}

  - slots: 352-671
    name: s1
  # the last
  - name: 's2'
    slots: "672-1023"
    generation: 7   # often moved
# the end
local: {replicas: 1}
"""
STYLES = {
    "block": TOP + BLOCK,
    "not indented": TOP + BLOCK.replace("\n  ", "\n"),
    "far in": TOP + BLOCK.replace("\n    ", "\n          ").replace("\n  - ", "\n      -   "),
    "CRLF": (TOP + BLOCK).replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + TOP + BLOCK,
    "no letter of ASCII before": "# Ünïcode - 漢字 😀\n" + TOP + BLOCK.replace("north", "Süd 🙂"),
    "flow in block": TOP
    + """\
shards:
  - {name: s0, slots: 0-351}
  - { slots: 352-671, name: s1 } # b
  - {name: s2, slots: '672-1023'}
""",
    "all flow": TOP + "shards: [{name: s0, slots: 0-351}, {name: s1, slots: 352-671}, {name: s2, slots: 672-1023}]\n",
    "flow over lines": TOP
    + """\
shards: [
  {name: s0, slots: 0-351}, # a
  {name: s1,
   slots: 352-671},
  {name: s2, slots: 672-1023}
]
""",
    "ends without a line break": TOP
    + """\
shards:
- name: s0
  slots: 0-351
- name: s1
  slots: 352-671
- name: s2
  slots: 672-1023""",
    "a dash alone": TOP
    + """\
shards:
  -
    name: s0
    slots: 0-351
  - name: s1
    slots: 352-671
  - name: s2
    slots:
      672-1023
""",
    "first of all": BLOCK.replace("local: {replicas: 1}\n", "") + TOP,
    "several ranges": TOP
    + """\
shards:
  - {name: s0, slots: '0-127,256-479'}
  - name: s1
    slots: 128-255, 480-671
  - name: s2
    slots: 672-1023
""",
}


def _fleet(text):
    return fleet_from(yamlfile.parse(text))


def _untouched(text):
    """The lines that say nothing of slots and generations."""
    edited = re.compile(r"slots|previous|generation|name: n|^[-\s\d,\[\]]+$")
    return [line for line in text.splitlines(keepends=True) if not line.strip() or not edited.search(line)]


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "request_", REQUESTS, ids=lambda r: "-".join(map(str, r.add or r.remove)) or r.split or "weights"
)
def test_the_text_follows_the_plan_and_keeps_the_rest(style, request_):
    text = STYLES[style]
    after = plan(_fleet(text), request_).after
    there = edited(text, after)
    assert _fleet(there) == after
    if "flow" not in style:
        assert _untouched(there) == _untouched(text)
    assert ("\r" in there) == ("\r" in text)
    assert "\n" not in there.replace("\r\n", "") or "\r" not in text
    back = edited(there, plan(after, Request(back=True)).after)
    assert _fleet(settled(there)) == after.settled()
    assert {s.name: s.slots for s in _fleet(settled(back)).shards} == {s.name: s.slots for s in _fleet(text).shards}
    assert "previous" not in settled(there)


def test_only_the_lines_of_changed_shards_differ():
    text = scaffold.text(3)
    there = edited(text, plan(_fleet(text), Request(split="s2")).after)
    gone = [line for line in text.splitlines() if line not in there.splitlines()]
    came = [line for line in there.splitlines() if line not in text.splitlines()]
    assert gone == ["    slots: 672-1023"]
    assert came[0].startswith("    slots: ")
    assert came[1:3] == ["    generation: 2", "    previous: [{generation: 1, slots: 672-1023}]"]
    assert came[3] == "  - name: s3"


def test_new_shards_take_the_types_of_their_siblings():
    text = (
        TOP
        + "shards:\n  - {name: s0, slots: 0-1023, types: [a]}\n  - name: s1\n    slots: 0-1023\n    except_types: [a]\n"
    )
    there = edited(text, plan(_fleet(text), Request(add=("new",), like="s1")).after)
    assert 'except_types: ["a"]' in there.split("name: new")[1]


def test_text_that_is_no_fleet_is_refused_as_ever():
    with pytest.raises(SpecError):
        edited(TOP + "shards: []", _fleet(STYLES["block"]))


@pytest.mark.parametrize(
    "shards",
    [
        "redis: {secret: {name: &range 0-351}}\nshards:\n- {name: s0, slots: *range}\n- {name: s1, slots: 352-1023}\n",
        "shards:\n- name: s0\n  slots: >-\n    0-351\n- {name: s1, slots: 352-1023}\n",
        "shards:\n- {name: s0, slots: &first 0-351}\n- {name: s1, slots: 352-1023, database: {name: *first}}\n",
    ],
    ids=["an alias", "a folded text", "an anchor that is used"],
)
def test_what_cannot_be_edited_safely_is_refused(shards):
    text = TOP + shards
    with pytest.raises(EditError, match=r"Write by hand:\n  - \{name: s0, slots: "):
        edited(text, plan(_fleet(text), Request(split="s0")).after)


@examples(0.25)
@given(st.data())
def test_any_mix_of_styles_is_edited_right_or_refused(data):
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    lines = []
    for number, slots in enumerate(("0-351", "352-671", "672-1023")):
        quote = draw("", "'", '"')
        fields = [f"name: {quote}s{number}{quote}", f"slots: {quote}{slots}{quote}"]
        fields += draw([], ["generation: 3"], ["autoscaling: {min: 3}"])
        fields = data.draw(st.permutations(fields))
        note, gap = draw("", "  # é, 漢: [x]"), draw("", "\n", "  # - name: old\n")
        if data.draw(st.booleans()):
            lines.append(f"  - {{{', '.join(fields)}}}{note}\n{gap}")
        else:
            lines.append(f"  - {fields[0]}{note}\n" + "".join(f"    {field}{note}\n" for field in fields[1:]) + gap)
    text = draw("", "\ufeff") + TOP + "shards:" + draw("", "  # all", " # 😀") + "\n" + "".join(lines)
    text = text.replace("\n", draw("\n", "\r\n"))
    fleet = _fleet(text)
    after = plan(fleet, draw(*REQUESTS)).after
    there = edited(text, after)
    assert _fleet(there) == after
    assert _fleet(settled(there)) == after.settled()
    assert there.count("#") >= text.count("#")

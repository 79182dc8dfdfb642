"""`shards.lock`: an edit by hand that contradicts what is deployed is refused, and the safe way named."""

import json

import pytest
from fleets import fleet, text

from shardctl import lockfile
from shardctl.cli import main
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request

BEFORE = ("0-511", "512-1023")


def faults_between(before, after):
    return list(lockfile.contradictions(lockfile.lock_of(before), after))


def only_fault(before, after):
    (fault,) = faults_between(before, after)
    return fault


def moving():
    return plan(fleet(BEFORE), Request(add=("s2",))).after


@pytest.mark.parametrize(
    "after",
    [
        fleet(BEFORE),
        fleet(BEFORE, more="subscription: {retention: 8d}\n"),
        fleet(BEFORE, types=("a", "b", "c")),
        moving(),
    ],
    ids=["the same", "other settings", "another type that every shard takes", "a rebalance"],
)
def test_what_may_follow(after):
    assert not faults_between(fleet(BEFORE), after)


@pytest.mark.slow
def test_a_rebalance_and_its_end():
    assert not faults_between(moving(), moving())
    assert not faults_between(moving().settled(), moving().settled())


def test_a_new_rebalance_may_follow_an_aborted_one():
    assert not faults_between(moving(), plan(moving(), Request(back=True)).after)


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (fleet(("0-255", "256-511"), slot_bits=9), "slot_bits was 10 and is 9"),
        (fleet(BEFORE, topic_bits=1), "topic_bits was 0 and is 1"),
        (fleet(BEFORE, more="topic: other-topic\n"), "topic was 'data-writes' and is 'other-topic'"),
        (fleet(BEFORE).model_copy(update={"fleet": "other"}), "fleet was 'orders' and is 'other'"),
    ],
)
def test_what_is_fixed_for_life(after, name):
    assert only_fault(fleet(BEFORE), after).startswith(f"{name}, which is fixed for a fleet's life")


def test_attribute_names_are_fixed_for_life():
    before = fleet(BEFORE)
    attributes = before.routing.attributes.model_copy(update={"slot": "bucket"})
    after = before.model_copy(update={"routing": before.routing.model_copy(update={"attributes": attributes})})
    assert only_fault(before, after).startswith('attributes was {"slot": "slot"')


def test_a_part_of_a_message_that_an_earlier_version_did_not_know_is_no_edit():
    lock = lockfile.lock_of(fleet(BEFORE))
    del lock.attributes["caller"]
    assert not list(lockfile.contradictions(lock, fleet(BEFORE)))


def test_slots_that_move_by_hand():
    faults = faults_between(fleet(BEFORE), fleet(("0-500", "501-1023")))
    assert faults[0].startswith("the slots of shard s0, generation 1, were 0-511 and are 0-500")
    assert "`shardctl rebalance plan` moves slots safely" in faults[0]
    assert len(faults) == 2


def test_a_new_generation_by_hand():
    after = fleet((["slots: 0-511", "generation: 2"], "512-1023"))
    assert "generation 1 of shard s0 is gone" in only_fault(fleet(BEFORE), after)
    assert "`shardctl rebalance finish`" in only_fault(fleet(BEFORE), after)


def test_a_previous_generation_that_is_dropped_by_hand():
    assert len(faults_between(moving(), moving().settled())) == 2  # those of s0 and s1


def test_the_transitional_file_after_the_finish():
    faults = faults_between(moving().settled(), moving())
    assert len(faults) == 2
    assert "generation 1 of shard s0 is no longer deployed" in faults[0]


def test_a_shard_that_is_dropped_by_hand():
    faults = faults_between(fleet(BEFORE), fleet(("0-1023",)))
    assert any(fault.startswith("shard s1 is gone") and "--remove s1" in fault for fault in faults)


def test_a_shard_that_is_added_by_hand():
    after = fleet(
        (["slots: 0-255", "generation: 2", "previous: [{generation: 1, slots: 0-511}]"], "512-1023", "256-511")
    )
    fault = only_fault(fleet(BEFORE), after)
    assert "the new shard s2 takes slots 256-511 of shard s0" in fault
    assert "`shardctl rebalance plan --add s2`" in fault


def test_message_types_that_change():
    after = fleet((["slots: 0-511", "types: [a, b]"], ["slots: 512-1023", "types: [a, b]"]))
    faults = faults_between(fleet(BEFORE), after)
    assert faults[0].startswith("the message types of shard s0 have changed")


def test_a_shard_for_types_that_nobody_took():
    before = fleet((["slots: 0-1023", "types: [a]"],), types=("a",))
    after = fleet((["slots: 0-1023", "types: [a]"], ["slots: 0-1023", "types: [b]"]))
    assert not faults_between(before, after)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "shards.yaml"
    file.write_text(text(BEFORE))
    return file


@pytest.mark.parametrize("after", [fleet(BEFORE), moving(), fleet((["slots: 0-1023", "types: [a, b]"],))])
def test_it_is_read_as_it_was_written(file, after):
    lockfile.write(file, after)
    assert lockfile.read(file) == lockfile.lock_of(after)
    assert json.loads((file.parent / "shards.lock").read_text())["fleet"] == "orders"


def test_without_a_lock_everything_may_be(file):
    lockfile.check(file, fleet(("0-1023",)))


@pytest.mark.parametrize("damage", ["", "{", '{"fleet": "orders"}'])
def test_a_lock_that_can_not_be_read(file, damage):
    lockfile.path_of(file).write_text(damage)
    with pytest.raises(lockfile.GuardError, match=r"shards.lock: can't be read as a lock.*version control"):
        lockfile.read(file)


@pytest.mark.parametrize("command", [["validate"], ["render"], ["provision", "--no-databases"]], ids=" ".join)
def test_commands_refuse_a_file_that_contradicts_it(file, command, capsys):
    lockfile.write(file, fleet(BEFORE))
    file.write_text(text(("0-500", "501-1023")))
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "`shardctl rebalance plan` moves slots safely" in err
    assert "If nothing ever was, delete it." in err


@pytest.mark.parametrize("command", [["validate"], ["render"]], ids=" ".join)
def test_commands_take_a_file_that_follows(file, command):
    lockfile.write(file, fleet(BEFORE))
    assert main(command) == 0


def test_many_contradictions_are_counted(file):
    shards = [str(slot) for slot in range(16)]
    lockfile.write(file, fleet(shards, slot_bits=4))
    with pytest.raises(lockfile.GuardError, match=r"and 6 more\."):
        lockfile.check(file, fleet([str(15 - slot) for slot in range(16)], slot_bits=4))

"""Slots that are copied while their writes go on: whatever is written meanwhile, and wherever the run dies, nothing is lost."""

from functools import partial

import pytest
from busy_kit import BusyWorld, killed_at_every_effect
from rebalance_kit import BITS

from shardctl.rebalance import bases, closing, copying, journal
from shardctl.rebalance.bases import Base, Bases, Round
from shardctl.rebalance.handover import Place, hand_overs
from shardctl.rebalance.rows import delta
from shardctl.rebalance.rows.delta import Log
from shardctl.shard import lanes, schema
from shardctl.shard.database import snapshot, writing
from shardctl.shard.schema import LaneState, RebalanceState


@pytest.fixture
def world(tmp_path):
    made = BusyWorld(tmp_path)
    made.provision()
    made.announce()
    made.between = True
    yield made
    made.close()


@pytest.mark.slow
def test_every_slot_is_handed_over_while_writes_go_on(world):
    run = world.run()
    (progress,) = world.to_its_end(run)
    assert progress.complete
    assert not progress.failed
    assert world.active() == world.wanted()
    assert world.check() == set(range(1 << BITS))
    assert (run.tally.moved, run.tally.bases, run.tally.fell_back) == (4, 4, [])
    assert run.tally.changes > 10


@pytest.mark.proof
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_every_effect_and_run_again(tmp_path, when, seed):
    world = BusyWorld(tmp_path, seed=seed)
    try:
        world.provision()
        world.announce()
        world.between = True
        assert killed_at_every_effect(world, when) > 25
    finally:
        world.close()


@pytest.mark.slow
def test_two_runs_at_once_do_no_harm(world):
    progresses = world.to_its_end(world.run(), world.run(), seconds=0.4)
    assert all(progress.complete for progress in progresses)
    assert world.active() == world.wanted()
    world.check()


def of_slot(world, slot=6):
    [hand_over] = [hand_over for hand_over in hand_overs(world.after) if hand_over.slot == slot]
    return hand_over, Place("s0", 1)


def bases_of(world, **more):
    return Bases(world.after, world.databases, world.rebalance(), few_rows=0, **more)


def known(world):
    from shardctl.rebalance import preflight

    return preflight.look(world.own)[0]


@pytest.mark.slow
def test_an_abort_leaves_no_copy_and_no_log_behind(world):
    hand_over, source = of_slot(world)
    made = bases_of(world)
    assert made.make(hand_over, source).rows >= 3
    assert world.logs()[1:] == (1, 1)
    closing.stop(world.after, world.own)
    with pytest.raises(journal.JournalError):
        made.make(*of_slot(world, 7))
    world.to_its_end(world.run(onward=False))
    closing.close(world.after, world.own, RebalanceState.ABORTED)
    assert world.logs() == (0, 0, 0)
    assert 6 not in world.rows("s2")
    world.check()


@pytest.mark.slow
def test_a_base_of_a_log_that_has_ended_is_none_under_the_next(world):
    """An abort that was killed half way may leave a base behind; what was written until the next start is in no log."""
    hand_over, source = of_slot(world)
    bases_of(world).make(hand_over, source)
    with writing(world.own["s0"]) as connection:
        lanes.end_logs(connection)
    for _ in range(30):
        world.consume()
    with writing(world.own["s0"]) as connection:
        lanes.begin_logs(connection, [6], 1)
    assert bases_of(world).catch_up(hand_over, source) is None
    (progress,) = world.to_its_end(world.run())
    assert progress.complete
    world.check()


@pytest.mark.slow
def test_a_round_that_wakes_up_after_the_rebalance_was_closed_changes_nothing(world, monkeypatch):
    """Its destination may hold the base of the next rebalance by then, under another lane."""
    hand_over, source = of_slot(world)
    made = bases_of(world)
    made.make(hand_over, source)
    for _ in range(20):
        world.consume()
    apply = bases.apply_delta

    def close_meanwhile(out, into, *more):
        rows = apply(out, into, *more)
        into.execute(schema.rebalances.update().values(state=RebalanceState.ABORTED))
        return rows

    monkeypatch.setattr(bases, "apply_delta", close_meanwhile)
    with pytest.raises(journal.JournalError):
        made.catch_up(hand_over, source)


@pytest.mark.slow
def test_what_was_copied_is_discarded_with_its_mark_alone(world):
    """Where the mark is gone, somebody else has closed the rebalance, and the rows may be the next one's."""
    hand_over, source = of_slot(world)
    bases_of(world).make(hand_over, source)
    with writing(world.own["s2"]) as connection:
        connection.execute(schema.bases.delete())
    bases.discard(world.own["s2"], world.after.message_types, 6, hand_over.to.generation)
    assert 6 in world.rows("s2")


@pytest.mark.slow
def test_an_existing_base_is_not_copied_again(world):
    hand_over, source = of_slot(world)
    assert bases_of(world).make(hand_over, source).rows > 0
    assert bases_of(world).make(hand_over, source) == Base(None)
    world.between = False
    for _ in range(30):
        world.consume()
    assert bases_of(world).catch_up(hand_over, source).changes > 0
    assert bases_of(world).catch_up(hand_over, source) == Round(0)


@pytest.mark.slow
def test_small_slots_are_copied_in_their_pauses(world):
    made = Bases(world.after, world.databases, world.rebalance())
    assert made.make(*of_slot(world)) is None
    assert world.logs() == (0, 0, 0)


@pytest.mark.slow
def test_a_value_that_is_unique_at_the_destination_is_not_taken_ahead_of_the_pause(world):
    """Its slot may give it up meanwhile, and a slot that is active there take it: that write would be refused."""
    hand_over, source = of_slot(world)
    with writing(world.databases[hand_over.to.shard]) as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX u ON a_rows (amount)")
    assert bases_of(world).make(hand_over, source) is None
    assert world.logs() == (0, 0, 0)


@pytest.mark.slow
def test_what_no_round_can_bring_about_is_copied_in_the_pause_and_reported(world, monkeypatch):
    def refuse(*_):
        raise copying_error

    from shardctl.rebalance.rows.rowcopy import CopyError

    copying_error = CopyError("no order satisfies it")
    monkeypatch.setattr(bases, "apply_delta", refuse)
    run = world.run()
    (progress,) = world.to_its_end(run)
    assert progress.complete
    assert len(run.tally.fell_back) == 4
    world.check()


def small_slots(*parts, few_rows):
    """They are copied in their pauses."""
    assert few_rows == 0
    return Bases(*parts, few_rows=1_000)


@pytest.mark.slow
def test_slots_of_one_destination_that_take_little_share_a_transaction(world):
    run, copied = world.run(bases=small_slots), []
    copy = run._copy_slots

    def note(out, into, moves):
        copied.append({move.slot for move in moves})
        return copy(out, into, moves)

    run._copy_slots = note
    (progress,) = world.to_its_end(run)
    assert progress.complete
    assert max(map(len, copied)) > 1, "one copy brings several slots over"
    assert sum(map(len, copied)) == len(set().union(*copied)) == 4
    assert (run.tally.moved, run.tally.bases, len(run.tally.pauses)) == (4, 0, 4)
    world.check()


@pytest.mark.slow
def test_a_slot_that_cannot_be_copied_holds_up_none_that_it_is_handed_over_with(world):
    from shardctl.rebalance.rows.rowcopy import CopyError

    run = world.run(bases=small_slots)
    copy, tried = run._copy_slots, []

    def refuse_one(out, into, moves):
        slots = [move.slot for move in moves]
        tried.append(slots)
        if 6 in slots:
            raise CopyError("no room")
        return copy(out, into, moves)

    run._copy_slots = refuse_one
    (progress,) = world.to_its_end(run)
    assert progress.arrived == progress.total - 1
    assert [reason.partition(",")[0] for reason in progress.failed] == ["slot 6"]
    assert [6] in tried
    assert any(6 in slots for slots in tried if len(slots) > 1), "it was tried together with others, and alone"
    world.check()


# -- mutants: each breaks one rule, and the tests above fail ------------------------------------------------------------


class SnapshotBeforeLog(Bases):
    """The snapshot is taken before the log's beginning has committed."""

    meanwhile = staticmethod(lambda: None)  # what consumers do between the two

    def make(self, hand_over, source):
        with writing(self._databases[hand_over.to.shard]) as into:
            lane = lanes.hold(into, hand_over.slot, hand_over.to.generation)
            if lane is None or lane.state != LaneState.ARRIVING:
                return None
            with snapshot(self._databases[source.shard]) as out:
                self.meanwhile()
                with writing(self._databases[source.shard]) as connection:
                    lanes.begin_logs(connection, (hand_over.slot,), source.generation)
                rows = bases.copy_slots(out, into, self._kinds(hand_over), (hand_over.slot,), active=True).total_rows
            with snapshot(self._databases[source.shard]) as out:
                log = lanes.read(out, (hand_over.slot,)).popitem()[1].log
            bases.end(into, (hand_over.slot,), hand_over.to.generation)
            its = {"slot": hand_over.slot, "generation": hand_over.to.generation, "log": log, "rows": rows}
            into.execute(schema.bases.insert().values(**its, source_shard=source.shard, source_generation=1))
        return Base(rows)


class MissesDeletions(Bases):
    """A round brings over rows that are there alone."""

    def _only_there(self, out, log, slot):
        there = {f'["{row[0]}"]' for row in out.exec_driver_sql(f"SELECT id FROM a_rows WHERE slot = {slot}")}
        keys = {table: [key for key in its if table != "a_rows" or key in there] for table, its in log.keys.items()}
        return Log(log.positions, keys)


class ForgetsFirst(Bases):
    """What was read is deleted from the log before it is brought over."""

    def catch_up(self, hand_over, source):
        with snapshot(self._databases[source.shard]) as out:
            log = delta.read_log(out, hand_over.slot, 0, 1_000)
        self._forget(source, log.positions)
        return Round(0)


class AppliesTwice(Bases):
    """An executor that wakes up applies what it had read, whatever the lane has become since."""

    def catch_up(self, hand_over, source):
        last_round = super().catch_up(hand_over, source)
        if last_round is None:
            with writing(self._databases[hand_over.to.shard]) as into, snapshot(self._databases[source.shard]) as out:
                keys = {f'["{row[0]}"]' for row in out.exec_driver_sql("SELECT id FROM a_rows")}
                delta.apply_delta(out, into, self._kinds(hand_over), hand_over.slot, Log((), {"a_rows": sorted(keys)}))
        return last_round


class ActivatesFirst(Bases):
    """The slot is active before its last round."""

    def finish(self, out, into, hand_over, source, left):
        return 0


MUTANTS = [SnapshotBeforeLog, MissesDeletions, ForgetsFirst, AppliesTwice, ActivatesFirst]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(tmp_path, mutant, monkeypatch):
    if mutant is MissesDeletions:
        apply = bases.apply_delta

        def missing(out, into, kinds, slot, log, *more):
            return apply(out, into, kinds, slot, MissesDeletions._only_there(None, out, log, slot), *more)

        monkeypatch.setattr(bases, "apply_delta", missing)
    for seed in range(5):
        world = BusyWorld(tmp_path / str(seed), seed=seed)
        (tmp_path / str(seed)).mkdir()
        try:
            world.provision()
            world.announce()
            world.between = True
            mutant.meanwhile = staticmethod(partial(_write_a_lot, world))
            run = world.run(bases=mutant)
            try:
                world.to_its_end(run)
                if mutant is AppliesTwice:
                    wake_up(world, mutant)
                world.check()
            except AssertionError:
                return
        finally:
            world.close()
    raise AssertionError(f"{mutant.__name__} does no harm that anybody sees")


def _write_a_lot(world):
    for _ in range(10):
        world.write_where_it_is(("s0", "s1"))


def wake_up(world, mutant):
    """Long after: the slot has been written to at its new place."""
    for _ in range(20):
        world.consume()
    made = mutant(world.after, world.databases, world.rebalance(), few_rows=0)
    for hand_over in hand_overs(world.after):
        if hand_over.to.shard == "s2":
            source = Place("s0" if hand_over.slot < 8 else "s1", 1)
            made.catch_up(hand_over, source)


@pytest.mark.slow
def test_the_hand_over_of_the_original_survives_what_finds_the_mutants(world):
    world.to_its_end(world.run())
    wake_up(world, Bases)
    world.check()
    move, source = of_slot(world)
    copy = copying.row_copy(world.after)
    assert copying.hand_over(world.databases, {move: source}, copy, bases_of(world))[move].rows is None

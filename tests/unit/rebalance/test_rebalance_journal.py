"""The journal: one rebalance is open at most, and the same change has the same id."""

from dataclasses import replace

import pytest
from rebalance_kit import AFTER, after, before

from shardctl.provision import ProvisionError, provision_database
from shardctl.rebalance import journal
from shardctl.rebalance.opening import make_tables, open_rebalance
from shardctl.shard import lanes
from shardctl.shard.database import connect, writing
from shardctl.shard.schema import RebalanceState

OTHER = (AFTER[0], AFTER[1], ["slots: 6-9", "generation: 5", "previous: []"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 's0.db'}"
    provision_database(before(), before().shards[0], url)
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine):
    with writing(engine) as connection:
        yield connection
        connection.rollback()


def test_the_file_finds_its_rebalance_by_what_it_changes(connection):
    mine = journal.begin(connection, after(), "s0")
    entries = journal.read(connection)
    assert journal.entry_of(after(), entries).id == mine
    assert journal.entry_of(after(OTHER), entries) is None
    journal.stop(connection, after())
    assert journal.entry_of(after(), journal.read(connection)).id == mine


def test_its_id_cannot_be_guessed(connection):
    """The file gives none: the same change, opened elsewhere, has another."""
    mine = journal.begin(connection, after(), "s0")
    connection.exec_driver_sql("DELETE FROM shardctl_rebalances")
    assert journal.begin(connection, after(), "s0") != mine
    assert len(mine) == 2 * journal.ID_BYTES


def test_every_database_has_it_under_the_same_id(connection):
    assert journal.begin(connection, after(), "s0", "of another database") == "of another database"
    assert journal.begin(connection, after(), "s0", "of another database") == "of another database"
    with pytest.raises(journal.JournalError, match="under different ids: a third, of another database"):
        journal.begin(connection, after(), "s0", "a third")


def test_databases_that_disagree_about_its_id_are_reported(connection):
    journal.begin(connection, after(), "s0")
    (entry,) = journal.read(connection).values()
    other = replace(entry, id="other")
    assert journal.id_of(after(), [{entry.id: entry}, {}]) == entry.id
    assert journal.id_of(after(), [{}, {}]) is None
    with pytest.raises(journal.JournalError, match="restored from a backup"):
        journal.id_of(after(), [{entry.id: entry}, {other.id: other}])


def test_an_entry_says_what_changes(connection):
    journal.begin(connection, after(), "s0")
    (entry,) = journal.read(connection).values()
    assert entry.state == RebalanceState.OPEN
    assert entry.plan["shards"][0] == {
        "name": "s0",
        "generation": 2,
        "slots": "0-5",
        "previous": [{"generation": 1, "slots": "0-7"}],
    }
    assert "shards s0, s1, s2 is open, since 2" in journal.summary_of(entry)


def test_opening_it_again_changes_nothing(connection):
    journal.begin(connection, after(), "s0")
    journal.begin(connection, after(), "s0")
    assert len(journal.read(connection)) == 1


def test_a_change_of_it_takes_the_fence_alone(connection):
    for change in (
        lambda: journal.begin(connection, after(), "s0"),
        lambda: journal.stop(connection, after()),
        lambda: journal.close(connection, after(), RebalanceState.DONE),
    ):
        version = lanes.version(connection)
        change()
        assert lanes.version(connection) > version


def test_another_one_can_not_be_opened(connection):
    journal.begin(connection, after(), "s0")
    with pytest.raises(journal.JournalError, match=r"shard s0: rebalance .* is open.*`shardctl rebalance abort"):
        journal.begin(connection, after(OTHER), "s0")
    journal.stop(connection, after())
    journal.close(connection, after(), RebalanceState.ABORTED)
    journal.begin(connection, after(OTHER), "s0")


def test_two_shards_in_one_database(connection):
    journal.begin(connection, after(), "s0")
    with pytest.raises(journal.JournalError, match="s0 and s1 share one database"):
        journal.begin(connection, after(), "s1")


def test_one_that_was_aborted_goes_on(connection):
    mine = journal.begin(connection, after(), "s0")
    journal.stop(connection, after())
    with pytest.raises(journal.JournalError, match="being aborted"):
        journal.check_going(connection, mine)
    journal.stop(connection, after())
    journal.close(connection, after(), RebalanceState.ABORTED)
    assert journal.read(connection)[mine].closed_time
    with pytest.raises(journal.JournalError, match="isn't open any more: it is aborted"):
        journal.check_going(connection, mine)
    journal.begin(connection, after(), "s0")
    journal.check_going(connection, mine)
    assert journal.read(connection)[mine].closed_time is None


def test_one_that_is_done_does_not(connection):
    journal.begin(connection, after(), "s0")
    journal.close(connection, after(), RebalanceState.DONE)
    journal.stop(connection, after())
    journal.close(connection, after(), RebalanceState.ABORTED)
    with pytest.raises(journal.JournalError, match="is done"):
        journal.begin(connection, after(), "s0")


def test_one_whose_finish_has_begun_is_neither_aborted_nor_opened_again(connection):
    mine = journal.begin(connection, after(), "s0")
    for _ in range(2):
        journal.begin_finish(connection, after(), decided=False)
    for again in (lambda: journal.stop(connection, after()), lambda: journal.begin(connection, after(), "s0")):
        with pytest.raises(
            journal.PointOfNoReturnError, match="`shardctl rebalance finish` again brings it to its end"
        ):
            again()
    assert journal.entry_of(after(), journal.read(connection)).id == mine
    journal.close(connection, after(), RebalanceState.DONE)
    journal.begin_finish(connection, after(), decided=False)


@pytest.mark.parametrize("closed", [False, True])
def test_one_whose_abort_has_begun_is_not_finished(connection, closed):
    journal.begin(connection, after(), "s0")
    journal.stop(connection, after())
    if closed:
        journal.close(connection, after(), RebalanceState.ABORTED)
    with pytest.raises(journal.JournalError, match="was aborted" if closed else "is being aborted"):
        journal.begin_finish(connection, after(), decided=False)


def test_one_that_was_never_opened(connection):
    with pytest.raises(journal.JournalError, match=r"isn't open\."):
        journal.check_going(connection, "nothing")


def test_a_start_that_is_run_again_finds_the_id_that_one_database_has(fresh):
    """It was killed between two databases, and the next one begins with another of them."""
    with writing(fresh.own["s1"]) as connection:
        mine = journal.begin(connection, fresh.after, "s1")
    make_tables(fresh.after, {name: fresh.url(name) for name in fresh.own})
    broker = Broken()
    with pytest.raises(ProvisionError):
        open_rebalance(fresh.after, fresh.own, broker, broker)
    assert journal.find(fresh.after, fresh.own) == mine


class Broken:
    """A Pub/Sub that is away."""

    def __getattr__(self, name):
        def call(*_, **__):
            raise ProvisionError("no route to Pub/Sub")

        return call

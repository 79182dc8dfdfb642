"""The journal: one rebalance is open at most, and the same change has the same id."""

import pytest
from rebalance_kit import AFTER, after, before

from shardctl import lanes
from shardctl.database import connect, writing
from shardctl.provision import provision_database
from shardctl.rebalance import journal
from shardctl.schema import RebalanceState

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


def test_the_same_change_has_the_same_id():
    assert journal.id_of(after()) == journal.id_of(after())
    assert journal.id_of(after()) != journal.id_of(after(OTHER))


def test_an_entry_tells_what_changes(connection):
    journal.begin(connection, after(), "s0")
    (entry,) = journal.read(connection).values()
    assert entry.state == RebalanceState.OPEN
    assert entry.plan["shards"][0] == {
        "name": "s0",
        "generation": 2,
        "slots": "0-5",
        "previous": [{"generation": 1, "slots": "0-7"}],
    }
    assert "shards s0, s1, s2 is open, since 2" in journal.told(entry)


def test_opening_it_again_changes_nothing(connection):
    journal.begin(connection, after(), "s0")
    journal.begin(connection, after(), "s0")
    assert len(journal.read(connection)) == 1


def test_whoever_changes_it_takes_the_fence_alone(connection):
    for change in (
        lambda: journal.begin(connection, after(), "s0"),
        lambda: journal.stop(connection, journal.id_of(after())),
        lambda: journal.close(connection, journal.id_of(after()), RebalanceState.DONE),
    ):
        version = lanes.version(connection)
        change()
        assert lanes.version(connection) > version


def test_another_one_can_not_be_opened(connection):
    journal.begin(connection, after(), "s0")
    with pytest.raises(journal.JournalError, match=r"shard s0: rebalance .* is open.*`shardctl rebalance abort"):
        journal.begin(connection, after(OTHER), "s0")
    journal.stop(connection, journal.id_of(after()))
    journal.close(connection, journal.id_of(after()), RebalanceState.ABORTED)
    journal.begin(connection, after(OTHER), "s0")


def test_two_shards_in_one_database(connection):
    journal.begin(connection, after(), "s0")
    with pytest.raises(journal.JournalError, match="s0 and s1 share one database"):
        journal.begin(connection, after(), "s1")


def test_one_that_was_aborted_goes_on(connection):
    mine = journal.id_of(after())
    journal.begin(connection, after(), "s0")
    journal.stop(connection, mine)
    with pytest.raises(journal.JournalError, match="being aborted"):
        journal.check_going(connection, mine)
    journal.stop(connection, mine)
    journal.close(connection, mine, RebalanceState.ABORTED)
    assert journal.read(connection)[mine].closed_time
    with pytest.raises(journal.JournalError, match="isn't open any more: it is aborted"):
        journal.check_going(connection, mine)
    journal.begin(connection, after(), "s0")
    journal.check_going(connection, mine)
    assert journal.read(connection)[mine].closed_time is None


def test_one_that_is_done_does_not(connection):
    mine = journal.id_of(after())
    journal.begin(connection, after(), "s0")
    journal.close(connection, mine, RebalanceState.DONE)
    journal.stop(connection, mine)
    journal.close(connection, mine, RebalanceState.ABORTED)
    with pytest.raises(journal.JournalError, match="is done"):
        journal.begin(connection, after(), "s0")


def test_one_that_was_never_opened(connection):
    with pytest.raises(journal.JournalError, match=r"isn't open\."):
        journal.check_going(connection, "nothing")

"""Slots that are copied while their writes go on, on PostgreSQL, MariaDB and between unlike databases, killed anywhere."""

import itertools

import pytest
from busy_kit import BusyWorld
from rebalance_kit import BITS, CrashError

from shardctl.rebalance import closing
from shardctl.rebalance.rows.fitness import unfit
from shardctl.shard.database import connect
from shardctl.shard.schema import RebalanceState

pytestmark = pytest.mark.slow

MIXES = [
    pytest.param(("postgresql",) * 3, id="postgresql"),
    pytest.param(("mariadb",) * 3, id="mariadb"),
    pytest.param(("postgresql", "mariadb", "sqlite"), id="into-sqlite"),
    pytest.param(("sqlite", "postgresql", "mariadb"), id="into-mariadb"),
    pytest.param(("mariadb", "sqlite", "postgresql"), id="into-postgresql"),
]
_numbers = itertools.count()


class RealBusyWorld(BusyWorld):
    def __init__(self, urls):
        self.urls = urls
        super().__init__(None)

    def url(self, name):
        return self.urls[name]

    def _engine(self, name):
        return connect(self.url(name))


@pytest.fixture
def world(request, tmp_path):
    number, urls, undo = next(_numbers), {}, []
    for at, product in enumerate(request.param):
        shard, name = f"s{at}", f"ahead_{number}_{at}"
        if product == "sqlite":
            urls[shard] = f"sqlite:///{tmp_path}/{name}.db"
            continue
        server = request.getfixturevalue("postgres_server" if product == "postgresql" else "mariadb_server")
        urls[shard] = server.create_database(name)
        undo.append((server, name))
    made = RealBusyWorld(urls)
    made.provision()
    made.announce()
    made.between = True
    yield made
    made.close()
    for server, name in undo:
        server.drop_database(name)


@pytest.mark.parametrize("world", MIXES, indirect=True)
def test_slots_move_between_databases_while_writes_go_on(world):
    assert not unfit(world.own["s0"], world.own["s2"], world.after.message_types)
    run = world.run()
    [said] = world.to_its_end(run)
    assert said.complete
    assert not said.failed
    assert (run.tally.moved, run.tally.bases, run.tally.fell_back) == (4, 4, [])
    assert world.active() == world.wanted()
    assert world.check() == set(range(1 << BITS))
    closing.close(world.after, world.own, RebalanceState.DONE)
    assert world.logs() == (0, 0, 0)


@pytest.mark.parametrize("world", MIXES[:2], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_effect_and_run_again(world, when):
    said, at = None, 0
    while said is None:
        at += 1
        assert at < 400
        world.crashes.effects, world.crashes.at = 0, (at, when)
        try:
            (said,) = world.to_its_end(world.run())
        except CrashError:
            world.crashes.at = None
            world.consume()
            world.now += 0.1
            world.check()
    assert said.complete
    assert at > 20
    assert world.active() == world.wanted()
    world.check()

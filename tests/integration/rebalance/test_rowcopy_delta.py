"""A copy that is brought up to date by the source's log is the source's slot: between real databases, and between unlike ones."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from delta_kit import SLOT, Changing, base, catch_up, differences, sides
from products_kit import empty_database
from sqlalchemy import delete, select

from shardctl.rebalance.rows.tables import slot_tables
from shardctl.rebalance.rows.tracking import untracked
from shardctl.shard import changes, database, schema
from shardctl.shard.database import DatabaseError

pytestmark = pytest.mark.slow
WAYS = [
    ("postgresql", "postgresql"), ("mariadb", "mariadb"), ("postgresql", "mariadb"), ("mariadb", "postgresql"),
    ("sqlite", "postgresql"), ("postgresql", "sqlite"),
]  # fmt: skip


@pytest.fixture(params=WAYS, ids="-".join)
def pair(request):
    with ExitStack() as databases:
        made = sides(*(databases.enter_context(empty_database(request, product)) for product in request.param))
        yield made
        for side in made:
            side.close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.proof) for seed in (1, 2))])
def test_round_by_round_the_copy_becomes_the_source(pair, seed):
    source, destination = pair
    writes = Changing(source, seed)
    writes.many(60)
    base(source, destination)
    assert not differences(source, destination)
    for most in (5, 10_000, 10_000):
        writes.many(30)
        catch_up(source, destination, forget=most > 5, most=10_000)
        assert not differences(source, destination)


def test_the_log_has_every_change_of_these_tables(pair):
    with database.snapshot(pair[0].engine) as out:
        assert list(untracked(out, slot_tables(out, pair[0].kinds))) == []


@pytest.mark.parametrize("pair", [WAYS[0]], ids="-".join, indirect=True)
def test_what_the_log_may_miss_is_reported_on_postgresql(pair):
    source = pair[0]
    try:
        source.run("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except DatabaseError:
        has_icu = False  # not every build has it
    else:
        has_icu = True
        source.run('ALTER TABLE audit ALTER COLUMN who TYPE text COLLATE "loose"')
    source.run(
        "ALTER TABLE a_lines DROP CONSTRAINT a_lines_order_id_fkey, ADD CONSTRAINT cascading FOREIGN KEY (order_id) "
        "REFERENCES a_orders (id) ON DELETE CASCADE",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM a_orders; RETURN NEW; END $$",
        "CREATE TRIGGER its AFTER INSERT ON things FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE RULE its AS ON INSERT TO audit DO ALSO NOTIFY x",
    )
    with database.snapshot(source.engine) as out:
        reasons = "\n".join(untracked(out, slot_tables(out, source.kinds)))
    assert ("two keys that differ may be equal in who" in reasons) == has_icu
    for reason in (
        "a_lines: its foreign key to a_orders changes its rows with the other's",
        "things: its trigger its names a_orders",
        "audit: its rule its changes what is written",
    ):
        assert reason in reasons


@pytest.mark.parametrize("pair", [WAYS[0]], ids="-".join, indirect=True)
def test_a_message_more_of_a_parked_key_rewrites_none_of_those_before_it(pair):
    source, destination = pair
    writes = Changing(source, 0)
    park(writes, 4)
    base(source, destination)
    before = positions(destination)
    park(writes, 2)
    catch_up(source, destination)
    assert positions(destination)[:4] == before
    assert len(positions(destination)) == 6
    assert not differences(source, destination)


@pytest.mark.parametrize("gone", [[0], [1], [3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("pair", [WAYS[0]], ids="-".join, indirect=True)
def test_messages_of_a_parked_key_that_are_gone_are_gone_from_the_copy(pair, gone):
    source, destination = pair
    writes = Changing(source, 0)
    park(writes, 4)
    base(source, destination)
    with database.writing(source.engine) as connection:
        places = [positions(source)[place] for place in gone]
        connection.execute(delete(schema.parked).where(schema.parked.c.position.in_(places)))
    park(writes, 2)
    catch_up(source, destination)
    assert len(positions(destination)) == 6 - len(gone)
    assert not differences(source, destination)


def park(writes, count):
    with database.writing(writes.side.engine) as connection:
        for _ in range(count):
            writes.number += 1
            changes.record(connection, writes.park(connection, SLOT, "k"))


def positions(side):
    with database.snapshot(side.engine) as connection:
        return list(connection.scalars(select(schema.parked.c.position).order_by(schema.parked.c.position)))

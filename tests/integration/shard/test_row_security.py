"""Rows that a row-level security policy hides: an error that names the table, wherever rows are read, moved or written."""

from __future__ import annotations

import re

import psycopg
import pytest
from consumer_kit import Shard, write
from rowcopy_kit import KINDS
from rowcopy_places import places
from sqlalchemy.engine import make_url

from shardctl.fleet.keyspace import SlotRule, SlotSet
from shardctl.rebalance.rows.fitness import unfit
from shardctl.rebalance.rows.removal import RemovalError, delete_slots
from shardctl.rebalance.rows.rowcopy import copy_slots
from shardctl.rebalance.rows.tables import row_counts, slot_tables
from shardctl.shard import database
from shardctl.verification import adopt
from shardctl.verification.rows import check_table

pytestmark = pytest.mark.slow
__all__ = ["places"]

ROLE = "row_security_mover"
HALF = f"CREATE POLICY half ON things TO {ROLE} USING (an_integer < 5)"


@pytest.fixture
def mover(postgres_server):
    """A user whom policies bind, unless a test changes that."""
    with psycopg.connect(postgres_server.url().replace("+psycopg", ""), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,)).rowcount:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{postgres_server.password}'")
        connection.execute(f"ALTER ROLE {ROLE} NOBYPASSRLS")
    return ROLE


def as_mover(url):
    return make_url(url).set(username=ROLE).render_as_string(hide_password=False)


def opened_to_mover(side):
    side.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}", f"GRANT ALL ON SCHEMA public TO {ROLE}")
    side.run(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")


@pytest.fixture
def half_hidden(places, mover):
    """Two databases as the mover sees them. Of ten rows of slot 5 at the source, a policy hides five."""
    sides, engines = [places.side("postgresql") for _ in range(2)], []
    for side in sides:
        opened_to_mover(side)
        engines.append(database.connect(as_mover(side.engine.url)))
    for number in range(10):
        sides[0].thing(id=f"k{number}", an_integer=number)
    sides[0].run("ALTER TABLE things ENABLE ROW LEVEL SECURITY", HALF)
    yield sides, engines
    for engine in engines:
        engine.dispose()


def copying(source, destination):
    with database.writing(destination) as into, database.snapshot(source) as out:
        copy_slots(out, into, KINDS, (5,))


def counting(source, _):
    with database.snapshot(source) as connection:
        row_counts(connection, KINDS)


def verifying(source, _):
    with database.snapshot(source) as connection:
        [table] = [table for table in slot_tables(connection, KINDS) if table.name == "things"]
        check_table(connection, "s0", table, [KINDS["thing"]], SlotSet.parse("5"), SlotSet(), SlotRule(6, 0))


def surveying(source, _):
    adopt.survey(source, "s0", KINDS["thing"], SlotRule(6, 0), SlotSet.parse("0-63"))


def giving_slots(source, _):
    adopt.give_slots(source, KINDS["thing"], SlotRule(6, 0), lambda _: None)


def deleting(source, _):
    delete_slots(source, KINDS, {5})


@pytest.mark.parametrize("work", [copying, counting, verifying, surveying, giving_slots, deleting])
def test_hidden_rows_are_an_error_that_names_the_table_and_the_fix(half_hidden, work):
    (side, other), engines = half_hidden
    with pytest.raises((database.DatabaseError, RemovalError), match=r"(?s)policy .*BYPASSRLS"):
        work(*engines)
    assert side.query("SELECT count(*) FROM things WHERE slot = 5") == [(10,)]
    assert other.query("SELECT count(*) FROM things") == [(0,)]


RIGHTS = (
    (f"ALTER ROLE {ROLE} BYPASSRLS", True),
    (f"ALTER TABLE things OWNER TO {ROLE}", True),
    ("ALTER TABLE things DISABLE ROW LEVEL SECURITY", True),
    (f"ALTER TABLE things OWNER TO {ROLE}, FORCE ROW LEVEL SECURITY", False),
    ("SELECT 1", False),
)


@pytest.mark.parametrize(("right", "fit"), RIGHTS, ids=["bypass", "owner", "disabled", "forced", "bound"])
def test_preflight_refuses_a_user_whom_policies_bind(half_hidden, right, fit):
    (side, _), engines = half_hidden
    side.run(right)
    reasons = unfit(*engines, KINDS)
    assert len(reasons) == (0 if fit else 1)
    assert all(re.match(r"table things: a row-level security policy binds .*BYPASSRLS", reason) for reason in reasons)


def test_a_role_that_sees_every_row_moves_every_row(half_hidden):
    (side, other), engines = half_hidden
    side.run(f"ALTER ROLE {ROLE} BYPASSRLS")
    copying(*engines)
    assert delete_slots(engines[0], KINDS, {5}) == 10
    assert other.query("SELECT count(*) FROM things") == [(10,)]
    assert side.query("SELECT count(*) FROM things") == [(0,)]


# --- a consumer's own writes --------------------------------------------------------------------------------------------


CUSTOMERS = "SELECT customer_id, name FROM customers ORDER BY customer_id"


@pytest.fixture
def shards(database_url, mover):
    """One database as its owner sees it, and as a consumer does to whom a policy hides all customers but one."""
    owner = Shard(database_url)
    owner.store.apply([write("customer", {"customer_id": "ann"}), write("customer", {"customer_id": "bob"})])
    for statement in (
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
        "ALTER TABLE customers ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY ann ON customers TO {ROLE} USING (customer_id = 'ann')",
    ):
        owner.run(statement)
    bound = Shard(as_mover(database_url), create=False)
    yield owner, bound
    bound.close()
    owner.close()


@pytest.mark.parametrize("operation", ["update", "delete", "upsert"])
def test_a_write_to_a_hidden_row_waits_instead_of_touching_nothing(shards, operation):
    owner, bound = shards
    waiting = write("customer", {"customer_id": "bob", "name": "Bob"}, operation)
    assert bound.settle(waiting).parked == 1
    assert (
        'row-level security policy for table "customers"' in owner.rows("SELECT detail FROM shardctl_parked_keys")[0][0]
    )
    assert owner.rows(CUSTOMERS) == [("ann", None), ("bob", None)]
    owner.run(f"ALTER ROLE {ROLE} BYPASSRLS")
    [key] = bound.store.not_ready_keys("customer")
    assert bound.store.release(key, bound.store._sink.check).applied == 1
    assert owner.rows(CUSTOMERS) == [("ann", None), *([] if operation == "delete" else [("bob", "Bob")])]

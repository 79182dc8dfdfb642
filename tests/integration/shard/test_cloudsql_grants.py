"""The privileges that docs/cloudsql.md grants are enough for a consumer and for a gateway's look-ups, and for nothing more."""

import re
from pathlib import Path

import pytest
from consumer_kit import Shard, write
from outcomes_kit import FILE, Inboxes
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.outcomes.effect import Effect, State
from shardctl.outcomes.watch import Watch
from shardctl.provision import provision_database
from shardctl.shard import database

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[3] / "docs" / "cloudsql.md").read_text()
PASSWORD = "here-alone"  # Cloud SQL lets them in without one
POSTGRESQL, MYSQL, GATEWAY = re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def writes(owner, url):
    """A shard of these tables whose user may do what the page grants."""
    shard = Shard(url, create=False)
    try:
        assert shard.settle(
            write("customer", {"customer_id": "c1", "name": "Ada"}, on=owner.engine.dialect.name)
        ).applied
        shard.settle(write("customer", {"customer_id": "c1"}, "delete", on=owner.engine.dialect.name))
        with pytest.raises(DBAPIError):
            shard.run("DROP TABLE customers")
    finally:
        shard.engine.dispose()
    assert owner.table("customer") == []


@pytest.mark.parametrize("granted_first", [True, False], ids=["before the tables", "after the tables"])
def test_on_postgresql(database_url, granted_first):
    owner, user = Shard(database_url, create=not granted_first), "orders-s0@my-project.iam"
    try:
        owner.run(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{PASSWORD}'")
        owner.run(POSTGRESQL)
        owner = Shard(database_url)
        writes(owner, owner.url.set(username=user, password=PASSWORD))
    finally:
        owner.run(f'DROP OWNED BY "{user}"')
        owner.run(f'DROP ROLE "{user}"')
        owner.engine.dispose()


def test_a_gateway_may_look_up_and_change_nothing(database_url):
    fleet = fleet_from(parse(FILE[: FILE.index("shards:")] + "shards: [{name: s0, slots: 0-15}]\n"))
    provision_database(fleet, fleet.shards[0], database_url)
    owner, user = database.connect(database_url), "orders-gateway@my-project.iam"
    engine = database.connect(
        make_url(database_url).set(username=user, password=PASSWORD).render_as_string(hide_password=False),
        connections=1,
    )
    try:
        inboxes = Inboxes.of(fleet, {"s0": owner})
        applied = inboxes.sought("o-1", "i-1")
        inboxes.settle(applied, shard="s0")
        with owner.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{PASSWORD}'")
            connection.exec_driver_sql(GATEWAY)
        waiter = Watch(fleet, {"s0": engine}).begin(applied, patient=False)
        assert waiter.future.result(60) == Effect(State.APPLIED, shard="s0")
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM shardctl_inbox")
    finally:
        engine.dispose()
        with owner.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{user}"')
            connection.exec_driver_sql(f'DROP ROLE "{user}"')
        owner.dispose()


def test_on_mysql(mariadb_server):
    owner = Shard(mariadb_server.create_database("orders"))
    try:
        owner.run(f"CREATE USER 'orders-s0'@'%' IDENTIFIED BY '{PASSWORD}'")
        owner.run(MYSQL)
        writes(owner, owner.url.set(username="orders-s0", password=PASSWORD))
    finally:
        owner.run("DROP USER 'orders-s0'@'%'")
        owner.engine.dispose()
        mariadb_server.drop_database("orders")

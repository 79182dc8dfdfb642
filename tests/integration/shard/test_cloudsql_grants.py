"""The privileges that docs/cloudsql.md grants are enough for a consumer, and give it no right to change a table."""

import re
from pathlib import Path

import pytest
from consumer_kit import Shard, write
from sqlalchemy.exc import DBAPIError

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[3] / "docs" / "cloudsql.md").read_text()
PASSWORD = "here-alone"  # Cloud SQL lets them in without one
POSTGRESQL, MYSQL = re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


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

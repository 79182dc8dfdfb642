"""Empty databases of each product, for tests that run on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PRODUCTS = ("postgresql", "sqlite", "mariadb")
SERVERS = ("postgresql", "mariadb")
_FIXTURES = {"postgresql": "postgres_server", "mariadb": "mariadb_server"}
_numbers = itertools.count()


@contextmanager
def empty_database(request: pytest.FixtureRequest, product: str) -> Iterator[str]:
    """The URL of a database that no other test uses; a server's is dropped at the end."""
    if product == "sqlite":
        yield f"sqlite:///{request.getfixturevalue('tmp_path_factory').mktemp('sqlite')}/shard.db"
        return
    server, name = request.getfixturevalue(_FIXTURES[product]), f"product_{next(_numbers)}"
    yield server.create_database(name)
    server.drop_database(name)

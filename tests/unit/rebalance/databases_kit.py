"""Worlds of slots that move between real databases, of one product or of several."""

import itertools
from contextlib import contextmanager

import pytest

from shardctl.shard.database import connect

MIXES = [
    pytest.param(("postgresql",) * 3, id="postgresql"),
    pytest.param(("mariadb",) * 3, id="mariadb"),
    pytest.param(("postgresql", "mariadb", "sqlite"), id="into-sqlite", marks=pytest.mark.proof),
    pytest.param(("sqlite", "postgresql", "mariadb"), id="into-mariadb", marks=pytest.mark.proof),
    pytest.param(("mariadb", "sqlite", "postgresql"), id="into-postgresql", marks=pytest.mark.proof),
]
_numbers = itertools.count()


@contextmanager
def on_databases(kind, request, tmp_path):
    """A world of that kind, provisioned and announced, on databases of the products that the test's parameter names."""

    class OnDatabases(kind):
        def __init__(self, urls):
            self.urls = urls
            super().__init__(None)

        def url(self, name):
            return self.urls[name]

        def _engine(self, name):
            return connect(self.url(name))

    number, urls, undo = next(_numbers), {}, []
    for at, product in enumerate(request.param):
        shard, name = f"s{at}", f"{kind.__name__.lower()}_{number}_{at}"
        if product == "sqlite":
            urls[shard] = f"sqlite:///{tmp_path}/{name}.db"
            continue
        server = request.getfixturevalue("postgres_server" if product == "postgresql" else "mariadb_server")
        urls[shard] = server.create_database(name)
        undo.append((server, name))
    world = OnDatabases(urls)
    world.provision()
    world.announce()
    yield world
    world.close()
    for server, name in undo:
        server.drop_database(name)

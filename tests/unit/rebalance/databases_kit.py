"""Worlds of slots that move between real databases, of one product or of several."""

from contextlib import ExitStack, contextmanager

import pytest
from products_kit import empty_database

from shardctl.shard.database import connect

MIXES = [
    pytest.param(("postgresql",) * 3, id="postgresql"),
    pytest.param(("mariadb",) * 3, id="mariadb"),
    pytest.param(("postgresql", "mariadb", "sqlite"), id="into-sqlite", marks=pytest.mark.proof),
    pytest.param(("sqlite", "postgresql", "mariadb"), id="into-mariadb", marks=pytest.mark.proof),
    pytest.param(("mariadb", "sqlite", "postgresql"), id="into-postgresql", marks=pytest.mark.proof),
]


@contextmanager
def on_databases(kind, request):
    """A world of that kind, provisioned and announced, on databases of the products that the test's parameter names."""

    class OnDatabases(kind):
        def __init__(self, urls):
            self.urls = urls
            super().__init__(None)

        def url(self, name):
            return self.urls[name]

        def _engine(self, name):
            return connect(self.url(name))

    with ExitStack() as databases:
        urls = {
            f"s{number}": databases.enter_context(empty_database(request, product))
            for number, product in enumerate(request.param)
        }
        world = OnDatabases(urls)
        world.provision()
        world.announce()
        yield world
        world.close()

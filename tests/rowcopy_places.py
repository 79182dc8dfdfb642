"""Empty databases on PostgreSQL, MariaDB and SQLite for tests that copy rows: import the fixtures `places` and `sides`."""

from __future__ import annotations

import pytest
from rowcopy_kit import KINDS, Side

PRODUCTS = ("postgresql", "mariadb", "sqlite")
BOTH = pytest.mark.parametrize("sides", [(product, product) for product in PRODUCTS], ids=PRODUCTS, indirect=True)
REAL = pytest.mark.parametrize(
    "sides", [(product, product) for product in PRODUCTS[:2]], ids=PRODUCTS[:2], indirect=True
)
POSTGRES = pytest.mark.parametrize("sides", [("postgresql", "postgresql")], ids=["postgresql"], indirect=True)


class Places:
    """Databases of one test, dropped when it ends."""

    def __init__(self, request, folder):
        self.request, self.folder, self.made, self.undo = request, folder, [], []

    def side(self, product, kinds=KINDS):
        name = f"rowcopy_{len(self.made)}"
        if product == "sqlite":
            url = f"sqlite:///{self.folder}/{name}.db"
        else:
            server = self.request.getfixturevalue("postgres_server" if product == "postgresql" else "mariadb_server")
            server.drop_database(name)
            url = server.create_database(name)
            self.undo.append(lambda: server.drop_database(name))
        self.made.append(Side(url, kinds))
        return self.made[-1]

    def close(self):
        for side in self.made:
            side.close()
        for undo in self.undo:
            undo()


@pytest.fixture
def places(request, tmp_path):
    made = Places(request, tmp_path)
    yield made
    made.close()


@pytest.fixture
def sides(request, places):
    return tuple(map(places.side, request.param))

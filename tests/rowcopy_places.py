"""Empty databases on PostgreSQL, MariaDB and SQLite for tests that copy rows: import the fixtures `places` and `sides`."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest
from products_kit import empty_database
from rowcopy_kit import KINDS, Side

PRODUCTS = ("postgresql", "mariadb", "sqlite")
BOTH = pytest.mark.parametrize("sides", [(product, product) for product in PRODUCTS], ids=PRODUCTS, indirect=True)
REAL = pytest.mark.parametrize(
    "sides", [(product, product) for product in PRODUCTS[:2]], ids=PRODUCTS[:2], indirect=True
)
POSTGRES = pytest.mark.parametrize("sides", [("postgresql", "postgresql")], ids=["postgresql"], indirect=True)


class Places:
    """Databases of one test, dropped when it ends."""

    def __init__(self, request, stack):
        self._request, self._stack = request, stack

    def side(self, product, kinds=KINDS):
        url = self._stack.enter_context(empty_database(self._request, product))
        return self._stack.enter_context(closing(Side(url, kinds)))


@pytest.fixture
def places(request):
    with ExitStack() as stack:
        yield Places(request, stack)


@pytest.fixture
def sides(request, places):
    return tuple(map(places.side, request.param))

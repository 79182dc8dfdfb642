"""A shard with the tables of a module's `TYPES`, on each kind of database."""

from __future__ import annotations

from contextlib import closing

import pytest
from arrival_kit import Database
from products_kit import PRODUCTS, empty_database


@pytest.fixture(scope="module", params=PRODUCTS)
def shared_shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, request.module.TYPES)) as shard:
        yield shard


@pytest.fixture
def shard(shared_shard):
    """Every table, empty: the tests of a module share them."""
    shared_shard.clear()
    return shared_shard

"""Key columns whose collation takes two texts for one: `init` says so where it drafts a type."""

from __future__ import annotations

import pytest
from products_kit import empty_database
from sqlalchemy import text

from shardctl.drafting.catalog import existing_tables
from shardctl.drafting.draft import draft_of
from shardctl.shard import database

pytestmark = pytest.mark.slow

FOLDS = "# id: a and A are two slots, and one key here"
COLUMNS = {
    "mariadb": {
        "Folding": "VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        "exact": "VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "numbers": "BIGINT",
        "native": "UUID",
    },
    "postgresql": {"exact": "text", "German": 'text COLLATE "C"', "numbers": "bigint"},
    "sqlite": {"exact": "text"},
}


@pytest.mark.parametrize("product", COLUMNS)
def test_a_comment_names_each_key_that_folds(request, product):
    with empty_database(request, product) as url:
        engine = database.connect(url)
        quoted = engine.dialect.identifier_preparer.quote_identifier
        with database.writing(engine) as connection:
            for name, column in COLUMNS[product].items():
                connection.execute(text(f"CREATE TABLE {quoted(name)} (id {column} PRIMARY KEY, other varchar(20))"))
        drafts = {name: draft_of(existing_tables(engine, chosen=[name])).text for name in COLUMNS[product]}
        engine.dispose()
    assert {name for name, draft in drafts.items() if FOLDS in draft} == {"Folding"} & COLUMNS[product].keys()

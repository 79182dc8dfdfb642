"""What is read of a database's tables."""

from __future__ import annotations

import pytest

from shardctl.drafting.catalog import existing_tables
from shardctl.shard import database


def test_a_file_that_is_not_there_is_named_and_not_made(tmp_path):
    engine = database.connect(f"sqlite:///{tmp_path}/nope.db")
    with pytest.raises(database.DatabaseError, match=r"nope\.db: there is no such file"):
        existing_tables(engine)
    assert list(tmp_path.iterdir()) == []

"""A run over the shards, on SQLite."""

from __future__ import annotations

import pytest
from migrate_kit import Shop

from shardctl.migrate.errors import ApplyError


def test_a_shard_that_goes_away_after_the_canary_is_reported_once_the_others_have_ended(tmp_path):
    """As any other failure: else the command would end at once, and others in the midst of their statements with it."""
    shop = Shop(tmp_path, {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("s0", "s1")})
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")

    def tell(shard, text):
        if shard == "s0" and " done" in text:
            (tmp_path / "s1.db").unlink()

    with pytest.raises(ApplyError, match=r"shard s1: .*no such file.* the same command goes on from there"):
        shop.apply(tell=tell)
    shop.close()

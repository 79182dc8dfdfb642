"""A mapped table has to have transactions: what is rolled back must not stay."""

from __future__ import annotations

import pytest
from consumer_kit import CONFIG, FLEET, Shard
from products_kit import empty_database

from consumer.database import sessions
from consumer.errors import TransientError
from shardctl.drafting.catalog import existing_tables
from shardctl.drafting.draft import draft_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import ProvisionError, provision_database
from shardctl.shard import database

pytestmark = pytest.mark.slow


@pytest.fixture
def shard(request):
    with empty_database(request, "mariadb") as url:
        made = Shard(url)
        yield made
        made.close()


@pytest.mark.parametrize("engine", ["MyISAM", "Aria"])
def test_a_table_without_transactions_is_refused_until_its_engine_is_changed(shard, engine):
    fleet, url = fleet_from(parse(FLEET, "test")), shard.engine.url.render_as_string(hide_password=False)
    shard.run(f"ALTER TABLE `Everything` ENGINE={engine}")
    with pytest.raises(TransientError, match=f"table Everything: its engine {engine} has no transactions") as refused:
        sessions.check_storage(shard.engine, shard.dialect, CONFIG.message_types)
    with pytest.raises(ProvisionError, match=f"its engine {engine} has no transactions"):
        provision_database(fleet, fleet.shards[0], url)
    shard.run(str(refused.value).partition("Run: ")[2].rstrip(";"))
    sessions.check_storage(shard.engine, shard.dialect, CONFIG.message_types)
    assert provision_database(fleet, fleet.shards[0], url).action == "identical"


def test_no_type_is_drafted_from_one(shard):
    shard.run("CREATE TABLE notes (id INTEGER PRIMARY KEY) ENGINE=MyISAM")
    engine = database.connect(shard.engine.url.render_as_string(hide_password=False))
    left_out = draft_of(existing_tables(engine)).left_out
    engine.dispose()
    assert [reason for reason in left_out if reason.startswith("notes:")] == [
        "notes: its engine MyISAM has no transactions; ALTER TABLE ... ENGINE=InnoDB changes that"
    ]

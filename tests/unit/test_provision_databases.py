"""Whose database a URL names: provisioning takes none that holds other slots than the shard's."""

import pytest
from sqlalchemy import create_engine, inspect

from shardctl.fleet import scaffold, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.provision import ProvisionError, provision_database


@pytest.fixture
def fleet():
    return fleet_from(yamlfile.parse(scaffold.text(2)))


@pytest.fixture
def url(tmp_path):
    return lambda name: f"sqlite:///{tmp_path}/{name}.db"


def test_databases_of_two_shards_are_not_exchanged(fleet, url):
    first, second = fleet.shards
    for shard in fleet.shards:
        provision_database(fleet, shard, url(shard.name))
    with pytest.raises(ProvisionError, match=r"(?s)shard s0 .*slots 512-1023 active in generation 1, .*its URL"):
        provision_database(fleet, first, url("s1"))
    with pytest.raises(ProvisionError, match="slots 0-511 active"):
        provision_database(fleet, second, url("s0"))
    for shard in fleet.shards:
        assert provision_database(fleet, shard, url(shard.name)).action == "identical"


def test_two_shards_do_not_share_a_database(fleet, url):
    first, second = fleet.shards
    provision_database(fleet, first, url("one"))
    with pytest.raises(ProvisionError, match="slots 0-511 active"):
        provision_database(fleet, second, url("one"))


def test_a_database_that_is_refused_gets_no_tables(fleet, url):
    first, second = fleet.shards
    provision_database(fleet, first, url("one"))
    more = fleet.message_types | {"later": fleet.message_types["customer"].model_copy(update={"table": "later"})}
    with pytest.raises(ProvisionError):
        provision_database(fleet.model_copy(update={"message_types": more}), second, url("one"))
    assert not inspect(create_engine(url("one"))).has_table("later")

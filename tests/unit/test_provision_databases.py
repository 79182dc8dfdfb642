"""Whose database a URL names: provisioning records it, and takes none that belongs to another or holds other slots."""

import re

import pytest
from sqlalchemy import create_engine, func, insert, inspect, text

from shardctl.fleet import scaffold, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.provision import ProvisionError, make_tables, provision_database, refuse_foreign
from shardctl.shard import database, membership, schema
from shardctl.shard.membership import Membership
from shardctl.shard.takeover import NOBODY, Takeover


@pytest.fixture
def fleet():
    return fleet_from(yamlfile.parse(scaffold.text(2)))


@pytest.fixture
def copy(fleet):
    return fleet.model_copy(update={"fleet": "staging"})


@pytest.fixture
def url(tmp_path):
    return lambda name: f"sqlite:///{tmp_path}/{name}.db"


@pytest.fixture
def urls(fleet, url):
    urls = {shard.name: url(shard.name) for shard in fleet.shards}
    for shard in fleet.shards:
        provision_database(fleet, shard, urls[shard.name])
    return urls


def run(url, *statements):
    with create_engine(url).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def recorded(url):
    with database.snapshot(database.connect(url)) as connection:
        return membership.read(connection)


def forget(url):
    """As a version that recorded nothing made it."""
    run(url, f"DROP TABLE {membership.table.name}")


def test_a_database_says_whose_it_is(fleet, urls):
    assert recorded(urls["s1"]) == Membership(fleet.fleet, "s1")
    for shard in fleet.shards:
        assert provision_database(fleet, shard, urls[shard.name]).action == "identical"


def test_databases_of_two_shards_are_not_exchanged(fleet, urls):
    first, second = fleet.shards
    with pytest.raises(ProvisionError, match=r"shard s0: database \S+s1\.db belongs to shard s1 of fleet"):
        provision_database(fleet, first, urls["s1"])
    with pytest.raises(ProvisionError, match="belongs to shard s0"):
        provision_database(fleet, second, urls["s0"])
    exchanged = {"s0": urls["s1"], "s1": urls["s0"]}
    with pytest.raises(ProvisionError, match=r"(?s)shard s0: .*shard s1: "):
        refuse_foreign(fleet, exchanged, NOBODY)
    refuse_foreign(fleet, urls, NOBODY)


def test_an_older_versions_databases_are_not_exchanged(fleet, urls):
    first, second = fleet.shards
    for url in urls.values():
        forget(url)
    with pytest.raises(ProvisionError, match=r"(?s)shard s0 .*slots 512-1023 active in generation 1, .*its URL"):
        provision_database(fleet, first, urls["s1"])
    with pytest.raises(ProvisionError, match="slots 0-511 active"):
        provision_database(fleet, second, urls["s0"])
    assert recorded(urls["s1"]) is None


def test_an_older_versions_database_gets_its_record(fleet, urls):
    forget(urls["s0"])
    step = provision_database(fleet, fleet.shards[0], urls["s0"])
    assert step.action == "create"
    assert step.fields == (membership.table.name,)
    assert not step.is_new_database
    assert recorded(urls["s0"]) == Membership(fleet.fleet, "s0")


def test_another_fleet_with_the_same_slots_is_refused(fleet, copy, urls):
    with pytest.raises(
        ProvisionError, match=f"belongs to shard s0 of fleet {fleet.fleet}, and was given as that of .* staging"
    ):
        provision_database(copy, copy.shards[0], urls["s0"])
    assert recorded(urls["s0"]) == Membership(fleet.fleet, "s0")


def test_two_shards_do_not_share_a_database(fleet, url):
    first, second = fleet.shards
    with pytest.raises(ProvisionError, match="shards s0 and s1 have one database URL"):
        refuse_foreign(fleet, {"s0": url("one"), "s1": url("one")}, NOBODY)
    provision_database(fleet, first, url("one"))
    with pytest.raises(ProvisionError, match="belongs to shard s0"):
        provision_database(fleet, second, url("one"))


def test_a_database_that_is_refused_gets_no_tables(fleet, url):
    first, second = fleet.shards
    provision_database(fleet, first, url("one"))
    more = fleet.message_types | {"later": fleet.message_types["customer"].model_copy(update={"table": "later"})}
    with pytest.raises(ProvisionError):
        provision_database(fleet.model_copy(update={"message_types": more}), second, url("one"))
    assert not inspect(create_engine(url("one"))).has_table("later")


def test_a_copy_is_taken_over_where_a_person_says_from_whom(fleet, copy, urls):
    takeover = Takeover.of([fleet.fleet])
    refuse_foreign(copy, urls, takeover)
    step = make_tables(copy, copy.shards[0], urls["s0"], takeover)
    assert (step.action, step.fields) == ("update", (membership.table.name,))
    assert recorded(urls["s0"]) == Membership("staging", "s0")
    assert make_tables(copy, copy.shards[0], urls["s0"], takeover).action == "identical"
    with pytest.raises(ProvisionError, match="belongs to shard s0 of fleet staging"):
        provision_database(fleet, fleet.shards[0], urls["s0"])


def test_a_copy_of_another_shard_is_not_taken_over(fleet, copy, urls):
    for takeover in (Takeover.of([fleet.fleet]), Takeover.of([f"{fleet.fleet}/s0"])):
        with pytest.raises(ProvisionError, match="belongs to shard s1"):
            make_tables(copy, copy.shards[0], urls["s1"], takeover)
    with pytest.raises(ProvisionError, match="slots 512-1023 active"):
        make_tables(copy, copy.shards[0], urls["s1"], Takeover.of([f"{fleet.fleet}/s1"]))
    assert recorded(urls["s1"]) == Membership(fleet.fleet, "s1")


def test_nothing_is_taken_over_from_consumers_that_run(fleet, copy, urls):
    replicas = schema.replicas
    with create_engine(urls["s0"]).begin() as connection:
        connection.execute(insert(replicas).values(replica="orders-s0-x", generations="1", seen_time=func.now()))
    takeover = Takeover.of([fleet.fleet])
    with pytest.raises(ProvisionError, match=re.escape("its consumers run: orders-s0-x. Scale them to 0")):
        make_tables(copy, copy.shards[0], urls["s0"], takeover)
    run(urls["s0"], "UPDATE shardctl_replicas SET seen_time = '2026-01-01 00:00:00'")
    make_tables(copy, copy.shards[0], urls["s0"], takeover)
    assert recorded(urls["s0"]) == Membership("staging", "s0")

"""Instances of Cloud SQL that the file asks for, as Config Connector's objects."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import LOADER, fleet_of, objects
from yaml import load

from shardctl.fleet.spec import Fleet
from shardctl.render import documents

KINDS = ("SQLInstance", "SQLDatabase", "SQLUser")
CREATE = "create: {version: %s, tier: db-custom-2-8192%s}"


def fleet(first: str, second: str = "database: {name: own}", *, more: str = "", version: str = "POSTGRES_17") -> Fleet:
    shards = f"shards:\n  - {{name: s0, slots: 0-7, {first}}}\n  - {{name: s1, slots: 8-15, {second}}}\n"
    return fleet_of(f"databases: [postgresql, mysql]\ncloud_sql: {{{CREATE % (version, more)}}}", shards)


def on(instance: str, database: str = "orders", more: str = "") -> str:
    return f"database: {{cloud_sql: {{instance: 'data-project:europe-west1:{instance}', database: {database}{more}}}}}"


def made(sql_fleet: Fleet, kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects(sql_fleet, kind)}


def test_nothing_is_made_unless_the_file_asks_for_it() -> None:
    shards = f"shards:\n  - {{name: s0, slots: 0-15, {on('a')}}}\n"
    assert objects(fleet_of("", shards), *KINDS) == []


def test_what_is_made_is_never_deleted() -> None:
    sql_fleet = fleet(on("a"), more=", replicas: [{name: r}]")
    for kind in KINDS:
        for item in made(sql_fleet, kind).values():
            assert item["metadata"]["annotations"]["cnrm.cloud.google.com/deletion-policy"] == "abandon"
    assert all(
        item["spec"]["settings"]["deletionProtectionEnabled"] for item in made(sql_fleet, "SQLInstance").values()
    )


def test_a_shard_gets_its_database_and_the_user_that_it_is() -> None:
    sql_fleet = fleet(on("a"))
    assert made(sql_fleet, "SQLDatabase")["orders-s0"]["spec"] == {
        "resourceID": "orders",
        "instanceRef": {"name": "a"},
        "deletionPolicy": "ABANDON",
    }
    assert made(sql_fleet, "SQLUser")["orders-s0"]["spec"] == {
        "resourceID": "orders-s0@my-project.iam",
        "instanceRef": {"name": "a"},
        "type": "CLOUD_IAM_SERVICE_ACCOUNT",
    }


def test_no_user_is_made_where_a_password_is_needed() -> None:
    sql_fleet = fleet(on("a", more=", iam: false"))
    assert (list(made(sql_fleet, "SQLDatabase")), made(sql_fleet, "SQLUser")) == (["orders-s0"], {})
    assert "databaseFlags" not in made(sql_fleet, "SQLInstance")["a"]["spec"]["settings"]


@pytest.mark.parametrize(
    ("version", "engine", "log"),
    [("POSTGRES_17", "postgresql", "pointInTimeRecoveryEnabled"), ("MYSQL_8_4", "mysql", "binaryLogEnabled")],
)
def test_every_transaction_is_kept_the_engines_own_way(version: str, engine: str, log: str) -> None:
    backups = made(fleet(on("a", more=f", engine: {engine}"), version=version), "SQLInstance")["a"]["spec"]["settings"][
        "backupConfiguration"
    ]
    assert {"pointInTimeRecoveryEnabled", "binaryLogEnabled"} & backups.keys() == {log}
    assert backups[log] is True


def test_a_replica_follows_its_primary_in_another_region() -> None:
    sql_fleet = fleet(on("a"), more=", replicas: [{name: r, region: europe-west4, tier: db-custom-1-3840}, {name: q}]")
    instances = made(sql_fleet, "SQLInstance")
    assert list(instances) == ["a", "r", "q"]
    replica, like = instances["r"]["spec"], instances["q"]["spec"]
    assert replica["masterInstanceRef"] == like["masterInstanceRef"] == {"name": "a"}
    assert (replica["region"], replica["settings"]["tier"]) == ("europe-west4", "db-custom-1-3840")
    assert (like["region"], like["settings"]["tier"]) == ("europe-west1", "db-custom-2-8192")
    assert "backupConfiguration" not in replica["settings"]
    assert replica["settings"]["databaseFlags"] == instances["a"]["spec"]["settings"]["databaseFlags"]


def test_an_instance_that_two_shards_share_is_made_once_and_is_the_fleets() -> None:
    sql_fleet = fleet(on("a", "one"), on("a", "two"))
    (document,) = documents(sql_fleet, kinds=["SQLInstance"])
    assert (document.name, document.shard) == ("a", None)
    assert sorted(made(sql_fleet, "SQLDatabase")) == ["orders-s0", "orders-s1"]


def test_a_shard_alone_is_rendered_with_its_own_instance_alone() -> None:
    sql_fleet = fleet(on("a"), on("b"))
    rendered = [load(document.text, LOADER) for document in documents(sql_fleet, kinds=KINDS, shards=["s1"])]
    assert [(item["kind"], item["metadata"]["name"]) for item in rendered] == [
        ("SQLInstance", "b"),
        ("SQLDatabase", "orders-s1"),
        ("SQLUser", "orders-s1"),
    ]


def test_each_kind_of_address() -> None:
    network = ", network: projects/p-shared/global/networks/default"
    sql_fleet = fleet(on("a", more=", ip: private"), on("b", more=", ip: psc"), more=network)
    addresses = {
        name: item["spec"]["settings"]["ipConfiguration"] for name, item in made(sql_fleet, "SQLInstance").items()
    }
    assert addresses == {
        "a": {
            "ipv4Enabled": False,
            "privateNetworkRef": {"external": "projects/p-shared/global/networks/default"},
        },
        "b": {
            "ipv4Enabled": False,
            "pscConfig": [{"pscEnabled": True, "allowedConsumerProjects": ["my-project"]}],
        },
    }

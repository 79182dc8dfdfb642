"""URLs as files of mounted Secrets, which consumers read again for each new connection."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import fleet_of, only, pod_of

from shardctl.fleet.spec import Fleet

ROOT = "/var/run/secrets/shardctl"
ON_CLOUD_SQL = "{cloud_sql: {instance: 'my-project:europe-west1:a', database: b}}"


def fleet(database: str = "{name: own, key: db}", more: str = "") -> Fleet:
    return fleet_of(
        f"secrets: {{files: true}}\n{more}", f"shards:\n  - {{name: s0, slots: 0-15, database: {database}}}\n"
    )


def consumer(fleet: Fleet) -> tuple[dict[str, Any], dict[str, tuple[str, list[str]]]]:
    """The consumer's environment, and each folder of files with its Secret and keys."""
    pod = pod_of(only(fleet, "Deployment"))
    (container,) = pod["containers"]
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    return {entry["name"]: entry.get("value") for entry in container["env"]}, {
        mount["mountPath"]: (
            secrets[mount["name"]]["secretName"],
            [item["key"] for item in secrets[mount["name"]]["items"]],
        )
        for mount in container["volumeMounts"]
        if mount["name"] in secrets
    }


def test_each_url_is_a_file_of_a_mounted_secret() -> None:
    environment, files = consumer(fleet())
    assert environment == {
        "POD_NAME": None,
        "DATABASE_URL_FILE": f"{ROOT}/own/db",
        "REDIS_URL_FILE": f"{ROOT}/orders-redis/url",
    }
    assert files == {f"{ROOT}/own": ("own", ["db"]), f"{ROOT}/orders-redis": ("orders-redis", ["url"])}


def test_a_secret_with_certificates_too_is_mounted_once() -> None:
    _, files = consumer(fleet(more="certificates: {own: [ca.crt]}"))
    assert files[f"{ROOT}/own"] == ("own", ["ca.crt", "db"])


def test_a_shard_that_logs_in_by_iam_has_no_file() -> None:
    environment, files = consumer(fleet(ON_CLOUD_SQL))
    assert "DATABASE_URL" in environment
    assert list(files) == [f"{ROOT}/orders-redis"]


@pytest.mark.parametrize("more", ["", "secrets: external-secrets"])
def test_files_are_for_who_asks(more: str) -> None:
    environment, files = consumer(fleet_of(more, "shards:\n  - {name: s0, slots: 0-15}\n"))
    assert set(environment) == {"POD_NAME", "DATABASE_URL", "REDIS_URL"}
    assert files == {}

"""Where credentials come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import CASES, WORKLOADS, fleet_of, objects, pod_of

from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec_errors import SpecError

cases = pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)


def external(more: str = "secrets: external-secrets", *shards: str) -> dict[str, dict[str, Any]]:
    fleet = fleet_of(more, "shards:\n" + "".join(shards)) if shards else fleet_of(more)
    return {item["metadata"]["name"]: item for item in objects(fleet, "ExternalSecret")}


def test_every_secret_of_the_pods_is_filled_from_secret_manager() -> None:
    secrets = external()
    assert secrets.keys() == {"orders-redis", "orders-s0-db", "orders-s1-db"}
    assert secrets["orders-s0-db"]["apiVersion"] == "external-secrets.io/v1"
    assert secrets["orders-s0-db"]["spec"] == {
        "refreshInterval": "3600s",
        "secretStoreRef": {"kind": "ClusterSecretStore", "name": "google-secret-manager"},
        "target": {"name": "orders-s0-db", "creationPolicy": "Owner"},
        "data": [{"secretKey": "url", "remoteRef": {"key": "orders-s0-db"}}],
    }
    assert [secrets[name]["metadata"]["labels"].get("shard") for name in sorted(secrets)] == [None, "s0", "s1"]


@cases
def test_what_pods_read_is_what_is_filled(path: Path) -> None:
    fleet = load_fleet(path)
    if fleet.secrets.kind == "external-secrets":
        filled = {
            (item["spec"]["target"]["name"], entry["secretKey"])
            for item in objects(fleet, "ExternalSecret")
            for entry in item["spec"]["data"]
        }
        # Certificates aren't: their Secrets are made by what issues them.
        assert filled == {(name, key) for name, key in _read_secrets(path) if name not in fleet.certificates}


def _read_secrets(path: Path) -> Iterator[tuple[str, str]]:
    for item in objects(load_fleet(path), *WORKLOADS):
        for container in pod_of(item)["containers"]:
            for entry in container.get("env", ()):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    yield entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"]
        for volume in pod_of(item)["volumes"]:
            if "secret" in volume:
                yield from ((volume["secret"]["secretName"], item["key"]) for item in volume["secret"]["items"])


def test_store_and_rotation_are_the_files_to_choose() -> None:
    secrets = external("secrets: {kind: external-secrets, refresh: 10m, store: {name: mine, kind: SecretStore}}")
    body = secrets["orders-redis"]["spec"]
    assert body["refreshInterval"] == "600s"
    assert body["secretStoreRef"] == {"kind": "SecretStore", "name": "mine"}


def test_shards_that_share_a_secret_share_what_fills_it() -> None:
    """Two owners of one Secret would each take the other's keys away."""
    secrets = external(
        "secrets: external-secrets",
        "  - {name: s0, slots: 0-7, database: {name: both, key: a, remote: url-a}}\n",
        "  - {name: s1, slots: 8-15, database: {name: both, key: b, remote: url-b}}\n",
    )
    assert secrets["both"]["spec"]["data"] == [
        {"secretKey": "a", "remoteRef": {"key": "url-a"}},
        {"secretKey": "b", "remoteRef": {"key": "url-b"}},
    ]
    assert "shard" not in secrets["both"]["metadata"]["labels"]


def test_a_shards_objects_alone_hold_its_own_secret_alone() -> None:
    secrets = objects(fleet_of("secrets: external-secrets"), "ExternalSecret", shards=["s1"])
    assert [item["metadata"]["name"] for item in secrets] == ["orders-s1-db"]


@pytest.mark.parametrize(
    ("databases", "message"),
    [
        (
            ("{name: a.b}", "{name: c}"),
            r"shards\[0\]\.database: Secret Manager has no id such as 'a\.b'\. Fix: name the",
        ),
        (
            ("{name: both, key: a}", "{name: both, key: b}"),
            r"shards\[1\]\.database: Secret both has another key that is filled from both too\. Fix: give each key",
        ),
        (
            ("{name: both, key: a, remote: x}", "{name: both, key: a, remote: y}"),
            r"shards\[1\]\.database: key a of Secret both is filled from x elsewhere",
        ),
    ],
    ids=["no such id", "two keys of one", "one key of two"],
)
def test_what_external_secrets_cant_fill_is_refused(databases: tuple[str, str], message: str) -> None:
    shards = [f"  - {{name: s{n}, slots: {8 * n}-{8 * n + 7}, database: {ref}}}\n" for n, ref in enumerate(databases)]
    with pytest.raises(SpecError, match=message):
        external("secrets: external-secrets", *shards)
    assert external("", *shards) == {}  # your own Secrets may be named as you like

"""A small fleet, its manifests read back, and the golden cases, for the tests of what is rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse
from shardctl.render import documents

CASES = sorted((Path(__file__).parents[2] / "golden" / "cases").glob("*/shards.yaml"))
WORKLOADS = ("Deployment", "StatefulSet")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KUBERNETES_VERSION = "1.32"

HEAD = """\
fleet: orders
project: my-project
namespace: writers
image: example.com/consumer:1.0.0
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text}}
"""
SHARDS = """\
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""


def fleet_of(more: str = "", shards: str = SHARDS) -> Fleet:
    """The fleet with more settings; `shards` takes the place of its two."""
    return fleet_from(parse(f"{HEAD}{more}\n{shards}"))


def objects(fleet: Fleet, *kinds: str, **choice: Any) -> list[dict[str, Any]]:
    return [yaml.load(document.text, LOADER) for document in documents(fleet, kinds=kinds, **choice)]


def only(fleet: Fleet, kind: str, name: str = "orders-s0") -> dict[str, Any]:
    """The one object of that kind and name, held against Kubernetes' schemas where they know it."""
    (manifest,) = (item for item in objects(fleet, kind) if item["metadata"]["name"] == name)
    if is_built_in(manifest):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    return manifest


def pod_of(item: dict[str, Any]) -> dict[str, Any]:
    return item["spec"]["template"]["spec"]


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """With the sidecars."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def is_built_in(item: dict[str, Any]) -> bool:
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway."))


def texts(value: Any) -> Iterator[str]:
    """Every key and every text of an object, and of the shard's file in a ConfigMap."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(json.loads(item) if key == "shard.json" else item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value

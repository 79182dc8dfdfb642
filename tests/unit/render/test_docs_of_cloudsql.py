"""The files that docs/cloudsql.md, docs/memorystore.md and docs/redis.md show can be rendered as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import HEAD, fleet_of, objects

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

DOCS = Path(__file__).parents[3] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("cloudsql.md"))
def test_what_the_page_shows_is_a_fleet_that_can_be_rendered(block: str) -> None:
    head = "" if block.startswith("fleet:") else HEAD.replace("routing: {slot_bits: 4}\n", "")
    workloads = objects(fleet_from(parse(head + block)), "Deployment")
    assert all("initContainers" in item["spec"]["template"]["spec"] for item in workloads)


@pytest.mark.parametrize(("number", "kind"), [(0, "RedisInstance"), (1, "MemorystoreInstance")])
def test_each_instance_that_the_page_shows_can_be_rendered(number: int, kind: str) -> None:
    assert len(objects(fleet_of(blocks("memorystore.md")[number]), kind)) == 1


@pytest.mark.parametrize("block", blocks("redis.md"))
def test_each_redis_that_the_page_shows_can_be_rendered(block: str) -> None:
    assert objects(fleet_of(block), "ConfigMap")

"""The files that docs/cloudsql.md shows can be rendered as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import HEAD, objects

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

PAGE = (Path(__file__).parents[3] / "docs" / "cloudsql.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_page_shows_is_a_fleet_that_can_be_rendered(block: str) -> None:
    head = "" if block.startswith("fleet:") else HEAD.replace("routing: {slot_bits: 4}\n", "")
    workloads = objects(fleet_from(parse(head + block)), "Deployment")
    assert all("initContainers" in item["spec"]["template"]["spec"] for item in workloads)

"""The settings that docs/rendering.md shows for the cluster's side can be used as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import HEAD, objects

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

PAGE = (Path(__file__).parents[3] / "docs" / "rendering.md").read_text()
SECTIONS = ("Workload", "Autoscaling", "Secrets", "Security", "Placement")


def _blocks() -> list[tuple[str, str]]:
    blocks = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        blocks += [(title, block) for block in re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]
    return [(title, block) for title, block in blocks if title in SECTIONS and not block.startswith("apiVersion")]


def test_every_section_shows_settings() -> None:
    assert {title for title, _ in _blocks()} == set(SECTIONS)


@pytest.mark.parametrize(("title", "block"), _blocks(), ids=[title for title, _ in _blocks()])
def test_what_the_page_shows_is_a_fleet_that_can_be_rendered(title: str, block: str) -> None:
    head = HEAD.replace("routing: {slot_bits: 4}\n", "")
    shards = "" if "shards:" in block else "shards:\n  - {name: s0, slots: 0-1023}\n"
    assert objects(fleet_from(parse(f"{head}{block}{shards}")))

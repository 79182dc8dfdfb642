"""What the last release rendered is rendered today too, or the changelog says which kinds differ. Selectors never change.

`released/` holds whole cases as the last release left them; `make release-golden` takes today's, when a release is made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardctl.fleet.load import load_fleet
from shardctl.render import documents

HERE = Path(__file__).parent
KEPT = ("three-shards", "statefulset-keda", "locked-down", "monitoring-operator", "traffic-services")


@pytest.fixture(autouse=True)
def taken_anew(request):
    if request.config.getoption("--update-release", default=False):
        for case in KEPT:
            shutil.rmtree(HERE / "released" / case, ignore_errors=True)
            shutil.copytree(HERE / "cases" / case, HERE / "released" / case)


@pytest.mark.parametrize("case", KEPT)
def test_an_upgrade_changes_nothing_that_the_changelog_does_not_name(case: str) -> None:
    before, after = _released(case), _rendered(case)
    changed = {
        objects[key]["kind"] for objects in (before, after) for key in objects if before.get(key) != after.get(key)
    }
    unnamed = changed - _named_in_changelog()
    assert not unnamed, (
        f"{', '.join(sorted(unnamed))} differ from what the last release rendered. Where that is meant, say so in "
        'CHANGELOG.md: a line "- Deployment: …" under "### Rendered" of what is unreleased.'
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", KEPT)
def test_no_selector_ever_changes(case: str) -> None:
    """Kubernetes refuses another selector of a Deployment, and another of a Service leaves the old pods alone."""
    before, after = _released(case), _rendered(case)
    selectors = {key: selector for key, item in before.items() if (selector := item.get("spec", {}).get("selector"))}
    assert selectors
    assert {key: after[key]["spec"]["selector"] for key in selectors if key in after} == selectors


def _named_in_changelog() -> set[str]:
    unreleased = (HERE.parents[1] / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert unreleased.startswith("Unreleased")
    section = unreleased.partition("### Rendered\n")[2].partition("\n### ")[0]
    return set(re.findall(r"^- (\w+):", section, re.MULTILINE))


def _released(case: str) -> dict[tuple[str, str], Any]:
    return dict(_by_name(path.read_text() for path in sorted((HERE / "released" / case / "out").rglob("*.yaml"))))


def _rendered(case: str) -> dict[tuple[str, str], Any]:
    """By today's code, from the file as it was then."""
    return dict(_by_name(document.text for document in documents(load_fleet(HERE / "released" / case / "shards.yaml"))))


def _by_name(texts: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    for text in texts:
        for item in yaml.safe_load_all(text):
            yield (item["kind"], item["metadata"]["name"]), item

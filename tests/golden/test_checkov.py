"""checkov over the golden manifests, where it is installed: it is too heavy a dependency to ask of everybody.

SHARDCTL_CHECKOV names the program; else the one on the PATH is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "cases"
LISTED = frozenset(yaml.safe_load((ROOT / ".checkov.yaml").read_text())["skip-check"])
CHECKOV = os.environ.get("SHARDCTL_CHECKOV") or shutil.which("checkov")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHECKOV, reason="checkov isn't on the PATH, nor named by SHARDCTL_CHECKOV"),
]


@pytest.fixture(scope="module")
def failed_checks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, frozenset[str]]:
    """The failed checks of each case, and of the Dockerfile where there is one."""
    place = tmp_path_factory.mktemp("checkov")  # from elsewhere checkov doesn't read .checkov.yaml, so it skips nothing
    shutil.copytree(CASES, place / "cases")
    frameworks = ["kubernetes"]
    if (ROOT / "Dockerfile").exists():
        shutil.copy(ROOT / "Dockerfile", place)
        frameworks.append("dockerfile")
    command = [
        CHECKOV,
        "--directory",
        ".",
        "--framework",
        *frameworks,
        "--skip-download",
        "--output",
        "json",
        "--quiet",
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    reports = json.loads(done.stdout)
    failed: dict[str, set[str]] = defaultdict(set)
    for report in reports if isinstance(reports, list) else [reports]:
        assert report["summary"]["parsing_errors"] == 0
        assert report["summary"]["passed"] > 0
        for check in report["results"]["failed_checks"]:
            parts = Path(check["file_path"].lstrip("/")).parts
            failed[parts[1] if parts[0] == "cases" else parts[0]].add(check["check_id"])
    return {case: frozenset(checks) for case, checks in failed.items()}


def test_nothing_is_found_but_what_is_listed_with_a_reason(failed_checks: Mapping[str, frozenset[str]]) -> None:
    assert {case: checks - LISTED for case, checks in failed_checks.items() if checks - LISTED} == {}


def test_what_is_listed_is_found(failed_checks: Mapping[str, frozenset[str]]) -> None:
    assert frozenset().union(*failed_checks.values()) >= LISTED


def test_a_fleet_with_every_lock_turned_leaves_one_finding(failed_checks: Mapping[str, frozenset[str]]) -> None:
    assert failed_checks["locked-down"] == {"CKV_K8S_35"}

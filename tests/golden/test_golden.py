"""One folder a case: `shards.yaml` in, the tree `out/` expected, byte for byte. `make golden` writes it again.

Where the fleet's provisioner has a format of its own, its file stands beside the manifests.
"""

from __future__ import annotations

import shutil
from difflib import unified_diff
from pathlib import Path

import pytest

from shardctl.fleet.load import load_fleet
from shardctl.render import documents, gcloud, terraform

CASES = sorted(path.parent for path in Path(__file__).parent.glob("cases/*/shards.yaml"))
MAX_DIFF_LINES = 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rendered_tree_is_the_expected_one(case: Path, request: pytest.FixtureRequest) -> None:
    fleet = load_fleet(case / "shards.yaml")
    rendered = {document.path: document.text for document in documents(fleet)}
    if fleet.provisioner == "terraform":
        rendered[f"{fleet.fleet}.tf.json"] = terraform.text(fleet)
    elif fleet.provisioner == "gcloud":
        rendered[f"{fleet.fleet}.sh"] = gcloud.text(fleet)
    out = case / "out"
    if request.config.getoption("--update-golden", default=False):
        shutil.rmtree(out, ignore_errors=True)
        for path, text in rendered.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(text.encode())
    expected = {
        path.relative_to(out).as_posix(): path.read_bytes().decode() for path in out.rglob("*") if path.is_file()
    }
    difference = _difference(expected, rendered)
    if difference:
        shown = "\n".join(difference[:MAX_DIFF_LINES])
        pytest.fail(f"{case.name} isn't rendered as expected; `make golden` accepts it:\n{shown}", pytrace=False)


def test_there_are_cases() -> None:
    assert len(CASES) >= 4


def _difference(expected: dict[str, str], rendered: dict[str, str]) -> list[str]:
    lines = []
    for path in sorted(expected.keys() | rendered.keys()):
        before, after = expected.get(path), rendered.get(path)
        if before != after:
            lines += unified_diff(
                (before or "").splitlines(),
                (after or "").splitlines(),
                f"expected/{path}" if before is not None else "/dev/null",
                f"rendered/{path}" if after is not None else "/dev/null",
                lineterm="",
            )
            if (before or "").splitlines() == (after or "").splitlines():
                lines.append(f"{path}: the files differ in line endings, or one of them is missing")
    return lines

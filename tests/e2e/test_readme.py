"""The README's commands work as they stand there. Blocks marked `sh` are run; those marked `bash` need more than this machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/producers.md", "docs/capacity.md", "docs/quickstart.md", "docs/howto.md")


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    shutil.copy(ROOT / "shards.yaml", tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands(page):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_relative_link_leads_somewhere():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_commands_are_listed_in_a_line_each():
    from typer.main import get_command

    from shardctl.cli import app

    listed = set(
        re.findall(
            r"^\| `shardctl ([a-z]+)|· `shardctl ([a-z]+)", (ROOT / "docs/commands.md").read_text(), re.MULTILINE
        )
    )
    assert {first or second for first, second in listed} == set(get_command(app).commands)

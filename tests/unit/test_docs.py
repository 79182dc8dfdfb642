"""The pages under docs/: each is listed, and each command in them is one that its tool has, with options that it has."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from shardctl.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
# Their commands are those of tools of others, too.
OPERATORS = ("production.md", "troubleshooting.md")
SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", "do", "then", "done", "!", "{", "}", "until", "while", "if"}
GCLOUD_TREE = "data/cli/gcloud_completions.py"
EVERYWHERE = {"--project", "--format", "--quiet", "--filter", "--flatten"}  # gcloud's own


@cache
def site() -> Any:
    """The site's configuration, docs/conf.py."""
    spec = importlib.util.spec_from_file_location("site_configuration", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_listed_and_has_its_place_in_the_navigation() -> None:
    parts = site().navigation((DOCS / "README.md").read_text())
    assert list(parts) == ["Tutorials", "How-to guides", "Reference", "Explanation"]
    listed = [page for pages in parts.values() for page in pages]
    there = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    assert sorted([*listed, "README"]) == sorted(there), "docs/README.md lists each page under one of its headings"


def built(folder: Path, out: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("sphinx") is None:
        if os.environ.get("CI"):
            pytest.fail("Sphinx isn't installed; requirements/dev.txt has it")
        pytest.skip("Sphinx isn't installed; `make site` installs it")
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", builder, folder, out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path: Path) -> None:
    done = built(DOCS, tmp_path, builder="dummy")  # resolves every link and writes no page
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.proof
def test_the_site_is_built_with_its_navigation_and_search(tmp_path: Path) -> None:
    done = built(DOCS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"quickstart"' in (tmp_path / "searchindex.js").read_text()
    front = (tmp_path / "README.html").read_text()
    for page in ("quickstart.html", "reference/commands.html", "handover.html"):
        assert f'class="reference internal" href="{page}"' in front
    assert "README.html" in (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_the_site_refuses_broken_links_and_forgotten_pages(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(DOCS / "conf.py", folder)
    (folder / "README.md").write_text("# Pages\n\n## All\n\n[one](one.md)\n")
    (folder / "one.md").write_text("# One\n\n[none](none.md) [anchor](two.md#none) [own](#none) [file](../none.py)\n")
    (folder / "two.md").write_text("# Two\n")
    done = built(folder, tmp_path / "out")
    assert done.returncode != 0
    faults = ("not found: 'none.md'", "not found in doc 'two': 'none'", "not found: 'none'", "not found: '../none.py'")
    for fault in (*faults, "two.md: WARNING: document isn't included in any toctree"):
        assert fault in done.stderr


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)


def calls(page: Path, tool: str) -> Iterator[list[str]]:
    """The words of each call of a tool, in blocks for a shell."""
    for block in shell_blocks(page):
        text = re.sub(r"<<'EOF'\n.*?^ *EOF$", "", block, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
        for inner in (text, *re.findall(r"\$\(([^()]*)\)", text)):
            for line in inner.splitlines():
                yield from _calls_in(line, tool)


def _calls_in(line: str, tool: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    words = list(lexer)
    for start, word in enumerate(words):
        if word == tool and (start == 0 or words[start - 1] in SEPARATORS):
            end = next((n for n in range(start, len(words)) if words[n] in SEPARATORS), len(words))
            yield words[start + 1 : end]


@cache
def root_command() -> Any:
    return get_command(app)


def fault_of(words: list[str]) -> str | None:
    """What `shardctl` would refuse of a call, as far as names go."""
    command = root_command()
    for place, word in enumerate(words):
        if hasattr(command, "commands"):
            if word.startswith("-"):
                continue
            if word not in command.commands:
                return f"no command {word}"
            command = command.commands[word]
        elif word == "--":
            return fault_of(words[place + 1 :])
        elif word.startswith("-") and word != "-":
            names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
            if word.partition("=")[0] not in names:
                return f"{command.name} has no option {word}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_shardctl_names_commands_and_options_that_there_are(page: Path) -> None:
    faults = [f"shardctl {' '.join(words)}: {fault}" for words in calls(page, "shardctl") if (fault := fault_of(words))]
    assert faults == []


def test_the_check_sees_what_isnt_there() -> None:
    assert fault_of(["rebalance", "rnu"]) == "no command rnu"
    assert fault_of(["apply", "--dry-runs"]) == "apply has no option --dry-runs"
    assert fault_of(["apply", "--dry-run"]) is None
    assert list(_calls_in("echo x | shardctl publish; shardctl status --watch", "shardctl")) == [
        ["publish"],
        ["status", "--watch"],
    ]


@cache
def gcloud_tree() -> dict[str, Any]:
    program = shutil.which("gcloud")
    roots = [Path(program).resolve().parents[1]] if program else []
    for root in (*roots, Path("/usr/lib/google-cloud-sdk")):
        if (root / GCLOUD_TREE).exists():
            spec = importlib.util.spec_from_file_location("gcloud_completions", root / GCLOUD_TREE)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.STATIC_COMPLETION_CLI_TREE  # type: ignore[no-any-return]
    pytest.skip("the Google Cloud SDK isn't installed")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_gcloud_names_commands_and_flags_that_there_are(page: Path) -> None:
    for words in calls(page, "gcloud"):
        place, node = 0, gcloud_tree()
        while place < len(words) and words[place] in node.get("commands", {}):
            node = node["commands"][words[place]]
            place += 1
        assert not node.get("commands"), f"gcloud {' '.join(words)}: no such command"
        named = {word.partition("=")[0] for word in words[place:] if word.startswith("--")}
        flags = {name if name in node["flags"] else name.replace("--no-", "--", 1) for name in named}
        assert flags <= {*node["flags"], *EVERYWHERE}, f"gcloud {' '.join(words)}"


@cache
def kubectl_flags(verb: str) -> set[str]:
    def says(*words: str) -> str:
        done = subprocess.run(
            ["kubectl", *words], capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]}
        )
        return done.stdout if done.returncode == 0 else ""

    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", says(*verb.split(), "--help") + says("options")))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl isn't on the PATH")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_kubectl_names_verbs_and_flags_that_there_are(page: Path) -> None:
    for words in calls(page, "kubectl"):
        plain = [
            word
            for place, word in enumerate(words)
            if not word.startswith("-") and words[place - 1] not in {"-n", "--context"}
        ]
        parts = 3 if plain[:2] == ["create", "secret"] else 2 if plain[0] in {"rollout", "create", "auth"} else 1
        verb = " ".join(plain[:parts])
        known = kubectl_flags(verb)
        assert known, f"kubectl has no {verb}"
        flags = {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        assert flags <= known, f"kubectl {' '.join(words)}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck isn't on the PATH")
@pytest.mark.parametrize("page", OPERATORS)
def test_a_shell_reads_the_pages_that_operators_copy_from(page: str, tmp_path: Path) -> None:
    script = tmp_path / "page.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(shell_blocks(DOCS / page)))
    done = subprocess.run(["shellcheck", "--severity=info", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

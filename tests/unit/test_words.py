"""The prose of the repository keeps to the words of CONTRIBUTING."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
# CHANGELOG quotes old names, and CONTRIBUTING the words themselves.
PROSE = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "Makefile", ".ci/run")
FOLDERS = ("docs", "shardctl", "consumer", "templates", "bench", "tests", "examples", ".github")
SUFFIXES = frozenset({".md", ".py", ".j2", ".html", ".js", ".sh", ".pml", ".yaml", ".yml", ".json", ".go", ".java"})
GENERATED = ROOT / "tests" / "golden"
INSTALLED = "node_modules"


def refused_words() -> list[str]:
    [section] = re.findall(r"^## Words\n(.*?)^## ", CONTRIBUTING.read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    return [word for row in rows if row not in ("not", "---") for word in row.split(", ")]


def files() -> Iterator[Path]:
    yield from (ROOT / name for name in PROSE)
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in SUFFIXES or GENERATED in file.parents or INSTALLED in file.parts:
                continue
            if file != Path(__file__):
                yield file


def refused(text: str) -> Iterator[tuple[int, str]]:
    """Line and word, in order. A phrase may go on in the next line."""
    phrases = "|".join(word.replace(" ", r"\s+(?:[#*]\s+)?") for word in refused_words())
    for match in re.finditer(rf"\b(?:{phrases})\b", text, re.IGNORECASE):
        yield text.count("\n", 0, match.start()) + 1, match[0]


def test_the_prose_has_no_refused_word():
    faults = [
        f"{file.relative_to(ROOT)}:{line}: {word!r}" for file in files() for line, word in refused(file.read_text())
    ]
    assert not faults, "\n".join(["CONTRIBUTING has the words to use instead:", *faults])


@pytest.mark.parametrize("text", ["Mended.", "it is\n# told", "stood  still", "what of late"])
def test_a_refused_word_is_found(text):
    assert [line for line, _ in refused(text)] == [1]


def test_parts_of_words_are_no_words():
    assert not list(refused("recommended, islet, ofLate"))

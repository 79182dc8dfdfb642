"""docs/defects.md names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/defects.md").read_text())))


def test_each_line_names_what_catches_its_defect():
    rows = [line for line in (ROOT / "docs/defects.md").read_text().splitlines() if re.match(r"\| (?!defect|-)", line)]
    assert len(rows) > 40
    assert not [row for row in rows if "`tests/" not in row and "`make " not in row]


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_is_named_is_there(path, name):
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions

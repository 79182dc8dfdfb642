"""docs/reference/ says what the code says."""

import importlib.util
import json
from pathlib import Path

import pytest

from shardctl.fleet import spec
from shardctl.fleet.scalars import _DURATION

DOCS = Path(__file__).parents[2] / "docs"
_found = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
reference = importlib.util.module_from_spec(_found)
_found.loader.exec_module(reference)


@pytest.fixture(scope="module")
def pages():
    return reference.pages()


def test_the_pages_are_current(pages):
    there = {path.name: path.read_text() for path in (DOCS / "reference").glob("*.md")}
    stale = [name for name in pages.keys() | there.keys() if pages.get(name) != there.get(name)]
    assert not stale, (
        f"{', '.join(stale)}: the code says otherwise by now. `make docs` writes them again; read the diff."
    )


def test_every_setting_is_documented(pages):
    """Held against the JSON Schema, which is made another way."""

    def settings(schema):
        for name, schema_of_name in schema.get("properties", {}).items():
            yield name
            yield from settings(schema_of_name)

    schema = spec.json_schema()
    names = {
        *settings(schema),
        *(name for schema_of_name in schema["$defs"].values() for name in settings(schema_of_name)),
    }
    assert len(names) > 150
    assert [name for name in sorted(names) if f"| `{name}` |" not in pages["shards-yaml.md"]] == []


def test_durations_in_the_schema_are_written_as_the_file_has_them():
    text = json.dumps(spec.json_schema())
    assert '"default": "PT' not in text
    assert _DURATION.fullmatch(spec.json_schema()["$defs"]["Batching"]["properties"]["lease"]["default"])

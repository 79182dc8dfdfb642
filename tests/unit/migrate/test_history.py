"""Revisions' files: one line of them, or an error that names the file, the fault and the fix."""

from __future__ import annotations

import pytest
from migrate_kit import revision_text

from shardctl.migrate import history
from shardctl.migrate.history import RevisionError


@pytest.fixture
def write(tmp_path):
    folder = tmp_path / "migrations"

    def write(**files):
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        return tmp_path / "shards.yaml"

    return write


def test_revisions_come_in_their_order_whatever_their_files_are_called(write):
    file = write(a=revision_text("third", "second"), b=revision_text("first", None), c=revision_text("second", "first"))
    line = history.read(file)
    assert line.ids == ("first", "second", "third")
    assert line.head == "third"
    assert str(line.revisions[0]) == "first (Change)"


def test_no_folder_is_no_revision(tmp_path):
    assert history.read(tmp_path / "shards.yaml").revisions == ()


FIRST = revision_text("a", None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": "def"}, r"migrations/x\.py:1: SyntaxError"),
        ({"x": "import sqlalchemy\nimport nosuchmodule\n"}, r"x\.py:2: ModuleNotFoundError"),
        ({"x": "raise SystemExit(0)\n"}, r"x\.py:1: SystemExit"),
        ({"x": "revision = 'a'\ndown_revision = None\n"}, r"x\.py: has no function `upgrade`"),
        ({"x": "def upgrade(): pass\n"}, r"x\.py: `revision` is None"),
        ({"x": revision_text("a b", None)}, r"`revision` is 'a b'"),
        ({"x": revision_text("a" * 65, None)}, "at most 64"),
        ({"x": FIRST, "y": FIRST}, r"x\.py and y\.py in .* are both revision a. Give one of them another"),
        ({"x": revision_text("b", "a")}, r"follows revision a, which no file in .* is"),
        ({"x": FIRST, "y": revision_text("b", None)}, r"two heads: x\.py and y\.py .* are both the first one.*'a'"),
        (
            {"x": FIRST, "y": revision_text("b", "a"), "z": revision_text("c", "a")},
            r"two heads: y\.py and z\.py .* both follow a.*`down_revision = 'b'`",
        ),
        (
            {"x": FIRST, "y": revision_text("b", "c"), "z": revision_text("c", "b")},
            "in a ring. Set `down_revision = None`",
        ),
        ({"x": FIRST.replace("down_revision = None", "down_revision = ('b', 'c')")}, "it merges b, c"),
        ({"x": FIRST.replace("down_revision = None", "down_revision = 1")}, "`down_revision` is 1"),
        ({"env": ""}, r"migrations/env\.py: shardctl brings Alembic's environment itself"),
        ({"x": "\x00"}, r"x\.py"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_what_makes_no_line_is_refused(write, files, message):
    with pytest.raises(RevisionError, match=message):
        history.read(write(**files))


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "migrations").write_text("")
    with pytest.raises(RevisionError, match="isn't a folder"):
        history.read(tmp_path / "shards.yaml")

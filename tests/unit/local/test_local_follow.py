"""What `shardctl up` does about its file, and what it says. The fleet is a recorder."""

from pathlib import Path

import pytest
import yaml
from test_local_changes import FLEET, MOVING

from shardctl.fleet.load import load_fleet
from shardctl.local.changes import CantApplyError
from shardctl.local.follow import Follower, next_file


class Recorder:
    def __init__(self):
        self.did = []
        self.refuses = False

    def prepare(self, fleet):
        self.did.append(("prepare", len(fleet.shards)))
        return tuple(shard.name for shard in fleet.shards if shard.previous == ())

    def apply(self, fleet):
        if self.refuses:
            raise CantApplyError(("it may not be",))
        self.did.append(("apply", len(fleet.shards)))
        return ("s0",)

    def database_url(self, shard):
        return f"url-of-{shard}"

    def write_environment(self):
        self.did.append("environment")
        return Path("run/env")


class Scene:
    def __init__(self, folder):
        self.file = folder / "shards.yaml"
        self.save(FLEET)
        self.local = Recorder()
        self.lines = []
        self.follower = Follower(self.local, self.file, load_fleet(self.file), folder / "manifests")

    def save(self, content, file=None):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (file or self.file).write_text(text)

    def look(self):
        before = len(self.lines), len(self.local.did)
        self.follower.look(self.lines.append)
        return self.lines[before[0] :], self.local.did[before[1] :]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_nothing_happens_while_the_file_is_unchanged(scene):
    assert scene.look() == ([], [])
    scene.save(FLEET)
    assert scene.look() == ([], [])
    scene.save("# a comment\n" + yaml.safe_dump(FLEET))
    assert scene.look() == ([], [])


def test_a_change_is_applied_once_and_reported(scene):
    scene.save(FLEET | {"shards": MOVING})
    lines, did = scene.look()
    assert lines == [f"{scene.file} changed and is applied: consumers of s0"]
    assert did == [("apply", 3), "environment"]
    assert len(list((scene.file.parent / "manifests").rglob("*.yaml"))) > 10
    assert scene.look() == ([], [])


def test_what_cant_be_read_is_reported_once(scene):
    scene.save("shards: [")
    lines, did = scene.look()
    assert did == []
    assert len(lines) == 1
    assert "could not be applied: " in lines[0]
    assert "not YAML" in lines[0]
    assert scene.look() == ([], [])
    scene.file.unlink()
    assert scene.look() == ([], [])
    scene.save(FLEET)
    assert scene.look() == ([], []), "it says again what is applied already"


def test_what_was_refused_is_tried_again_when_the_file_is_saved_again(scene):
    scene.local.refuses = True
    scene.save(FLEET | {"shards": MOVING})
    assert scene.look() == ([f"{scene.file} changed and could not be applied: it may not be"], [])
    assert scene.look() == ([], [])
    scene.local.refuses = False
    scene.file.touch()
    assert scene.look()[1] == [("apply", 3), "environment"]


def test_a_plan_beside_the_file_gets_databases_for_its_new_shards(scene):
    scene.save(FLEET | {"shards": MOVING}, next_file(scene.file))
    lines, did = scene.look()
    assert lines == [f"{next_file(scene.file)} adds s2, with databases. In your shell: . run/env"]
    assert did == [("prepare", 3), "environment"]
    assert scene.look() == ([], [])


def test_a_plan_that_was_there_before_is_prepared_for_too(tmp_path):
    (tmp_path / "shards.next.yaml").write_text(yaml.safe_dump(FLEET | {"shards": MOVING}))
    assert Scene(tmp_path).look()[1] == [("prepare", 3), "environment"]


def test_a_plan_without_new_shards_is_not_reported(scene):
    scene.save(FLEET, next_file(scene.file))
    assert scene.look() == ([], [("prepare", 2)])

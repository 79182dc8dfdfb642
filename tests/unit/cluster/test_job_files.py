"""The fleet's files on their way to a Job and back."""

import pytest
from cluster_kit import FLEET, Cluster

from shardctl.cli.job import files, inside
from shardctl.cluster.api import Api
from shardctl.cluster.incluster import CONFIG_MAP, KeptError, write_files
from shardctl.cluster.manifests import manifests
from shardctl.errors import UsageError
from shardctl.fleet.load import load_fleet
from shardctl.render.jobs import digest_of

SHARDS = "operator: {}\nshards: [{name: s0, slots: 0-15}]\n"
LOCK, NEXT = "shards.lock", "shards.next.yaml"


class Place:
    def __init__(self, folder):
        self.file = folder / "shards.yaml"
        self.file.write_text(FLEET + SHARDS)
        self.fleet = load_fleet(self.file)
        self.cluster = Cluster("writers")
        self.cluster.put("v1", "configmaps", "writers", {"metadata": {"name": "orders-operator"}})
        self.api = Api(self.cluster.client())

    def send(self):
        here = files.read(self.file)
        write_files(self.api, "writers", "orders-operator", here, digest_of(here))

    def change(self, **texts):
        """As the Job does: a text of None is a deleted file."""
        kept = self.cluster.find("ConfigMap", "orders-operator")
        now = {**kept["data"], **{name.replace("_", "."): text for name, text in texts.items()}}
        left = {name: text for name, text in now.items() if text is not None}
        write_files(self.api, "writers", "orders-operator", left, kept["metadata"]["annotations"]["shardctl/sent"])

    def take_over(self):
        return files.take_over(self.api, self.fleet, self.file)

    def here(self):
        return files.read(self.file)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_what_a_job_left_as_it_was_is_nothing_to_take_over(place):
    assert not place.take_over()
    place.send()
    assert not place.take_over()


def test_changed_new_and_deleted_files_are_taken_over_once(place, capsys):
    (place.file.parent / NEXT).write_text("planned\n")
    place.send()
    place.change(shards_yaml="changed\n", shards_lock="{}\n", shards_next_yaml=None)
    assert place.take_over()
    assert place.here() == {"shards.yaml": "changed\n", LOCK: "{}\n"}
    assert "shards.next.yaml: deleted, as the Job did" in capsys.readouterr().err
    assert not place.take_over()
    place.file.write_text("edited afterwards\n")
    assert not place.take_over()


def test_files_that_were_edited_meanwhile_are_not_overwritten(place):
    place.send()
    place.change(shards_yaml="changed\n")
    place.file.write_text("edited\n")
    with pytest.raises(KeptError, match=r"shards\.yaml beside .* isn't what the Job was given") as refused:
        place.take_over()
    assert "kubectl annotate configmap orders-operator -n writers --overwrite shardctl/sent=" in str(refused.value)
    assert place.file.read_text() == "edited\n"


def test_taking_over_continues_after_a_kill(place, monkeypatch):
    place.send()
    place.change(shards_yaml="changed\n", shards_lock="{}\n", shards_next_yaml="next\n")
    (place.file.parent / LOCK).write_text("{}\n")  # the one that was written before the kill
    assert place.take_over()
    assert place.here() == {"shards.yaml": "changed\n", LOCK: "{}\n", NEXT: "next\n"}


def test_only_the_fleets_own_files_are_written(place):
    place.send()
    place.change(shards_yaml="changed\n", Makefile="all: ; rm -rf /\n")
    assert place.take_over()
    assert sorted(path.name for path in place.file.parent.iterdir()) == ["shards.yaml"]


def test_applying_the_fleet_leaves_the_files(place):
    (rendered,) = (
        manifest
        for manifest in manifests(place.fleet)
        if (manifest.id.kind, manifest.id.name) == ("ConfigMap", "orders-operator")
    )
    for _ in range(2):
        place.api.apply(CONFIG_MAP, rendered)
        place.send()
    place.api.apply(CONFIG_MAP, rendered)
    assert place.cluster.find("ConfigMap", "orders-operator")["data"] == place.here()


def test_a_name_that_no_config_map_has_is_refused(place):
    odd = place.file.rename(place.file.with_name("my shards.yaml"))
    with pytest.raises(UsageError, match=r"my shards\.yaml: a Job's files have names of letters"):
        files.read(odd)


def test_files_that_no_config_map_holds_are_refused(place):
    (place.file.parent / NEXT).write_text("x" * 1_000_000)
    with pytest.raises(UsageError, match="bytes, and a Job is given at most 900,000"):
        files.read(place.file)


def test_revisions_go_to_a_job_and_a_draft_comes_back(place, tmp_path):
    folder = place.file.parent / "migrations"
    folder.mkdir()
    (folder / "a.py").write_text("first\n")
    place.send()
    pod = tmp_path / "pod"
    pod.mkdir()
    inside._write(pod, place.here())
    assert (pod / "migrations/a.py").read_text() == "first\n"
    assert inside._read(pod) == place.here()
    place.change(migrations__b_py="draft\n")
    assert place.take_over()
    assert (folder / "b.py").read_text() == "draft\n"
    assert not place.take_over()

from pathlib import Path

import pytest
import yaml

from shardctl.fleet.load import load_fleet
from shardctl.local import manifests
from shardctl.render import documents

ROOT = Path(__file__).parents[3]


@pytest.fixture
def fleet():
    return load_fleet(ROOT / "shards.yaml")


def test_every_object_is_written_and_counted(fleet, tmp_path):
    assert manifests.write(fleet, tmp_path) == len(list(documents(fleet)))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml")} == {
        document.path for document in documents(fleet)
    }


def test_writing_again_changes_nothing(fleet, tmp_path):
    manifests.write(fleet, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    manifests.write(fleet, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before


GOOD = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "isn't YAML"),
        ("- a\n", "holds no object"),
        (yaml.safe_dump({**GOOD, "metadata": {}}), "needs apiVersion, kind and metadata.name"),
        (yaml.safe_dump({**GOOD, "apiVersion": 1, "kind": None}), "needs apiVersion, kind and metadata.name"),
        (yaml.safe_dump_all([GOOD, GOOD]), "the same object as in"),
        (yaml.safe_dump({**GOOD, "kind": "PubSubSubscription", "spec": {"filter": "é" * 200}}), "takes 400 bytes"),
    ],
    ids=["no YAML", "a list", "no name", "no kind", "twice", "long filter"],
)
def test_what_a_cluster_would_refuse_is_named_with_its_file(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(manifests.BadManifestError, match=message) as refused:
        manifests.check([path])
    assert str(path) in str(refused.value)

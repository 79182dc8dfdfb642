"""`render -o DIR` writes inside DIR and nowhere else."""

import pytest

from shardctl.cli import main
from shardctl.fleet import scaffold
from shardctl.fleet.load import load_fleet
from shardctl.local import manifests as local
from shardctl.render import Document, manifests
from shardctl.render.manifests import OutsideError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shards.yaml"
    path.write_text(scaffold.text(1))
    return path


def document(path, text="kind: X\n"):
    return Document("X", "x", None, path, text)


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_each_file_is_created_then_left_and_then_updated(tmp_path):
    folder = tmp_path / "out"
    path = folder / "fleet" / "x.yaml"
    assert manifests.write(document("fleet/x.yaml"), folder) == (path, "create")
    before = path.stat().st_ino
    assert manifests.write(document("fleet/x.yaml"), folder) == (path, "identical")
    assert path.stat().st_ino == before
    assert manifests.write(document("fleet/x.yaml", "kind: Y\n"), folder) == (path, "update")
    assert path.read_text() == "kind: Y\n"


@pytest.mark.parametrize("path", ["../x.yaml", "fleet/../../x.yaml", "/x.yaml", ""])
def test_no_name_leads_out(tmp_path, path):
    folder = tmp_path / "out"
    with pytest.raises(OutsideError, match="doesn't lie inside"):
        manifests.write(document(path), folder)
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("link", ["fleet", "fleet/pubsubtopic-data-writes.yaml", "shards", "shards/s0"])
@pytest.mark.parametrize("leads_to", ["a file", "a folder", "nothing"])
def test_a_link_inside_the_folder_is_refused_and_what_it_leads_to_untouched(file, tmp_path, capsys, link, leads_to):
    victim = tmp_path / "victim"
    if leads_to == "a file":
        victim.write_text("precious\n")
    elif leads_to == "a folder":
        victim.mkdir()
        (victim / "pubsubtopic-data-writes.yaml").write_text("precious\n")
    at = tmp_path / "out" / link
    at.parent.mkdir(parents=True)
    at.symlink_to(victim)
    before = {path: path.read_text() for path in [victim, *victim.rglob("*")] if path.is_file()}
    assert main(["render", "-o", "out"]) == 1
    err = capsys.readouterr().err
    assert f"error: out/{link} is a symbolic link, so it isn't written through" in err
    assert {path: path.read_text() for path in [victim, *victim.rglob("*")] if path.is_file()} == before
    assert victim.exists() is (leads_to != "nothing")
    assert at.readlink() == victim


def test_a_link_beside_what_is_rendered_stays(file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").symlink_to(tmp_path)
    assert main(["render", "-o", "out"]) == 0
    assert (tmp_path / "out" / "fleet" / "pubsubtopic-data-writes.yaml").is_file()


def test_the_folder_itself_may_be_a_link(file, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    assert main(["render", "-o", "out"]) == 0
    assert (tmp_path / "real" / "fleet" / "pubsubtopic-data-writes.yaml").is_file()


@pytest.mark.parametrize("form", ["terraform", "gcloud"])
def test_other_formats_are_held_inside_too(file, tmp_path, form, capsys):
    file.write_text(file.read_text().replace("project: my-project", f"project: my-project\nprovisioner: {form}"))
    (tmp_path / "out").mkdir()
    name = {"terraform": "orders.tf.json", "gcloud": "orders.sh"}[form]
    (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    assert main(["render", "--format", form, "-o", "out"]) == 1
    assert "is a symbolic link" in capsys.readouterr().err
    assert not (tmp_path / "victim").exists()


def test_the_local_fleets_manifests_are_held_inside_too(file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fleet").symlink_to(tmp_path)
    with pytest.raises(OutsideError):
        local.write(load_fleet(file), tmp_path / "out")


@pytest.mark.parametrize("name", ["../s0", "s0/../..", "/etc", ".", "..", "a/b", "a\\b"])
def test_a_shards_name_is_no_path(file, capsys, name):
    file.write_text(file.read_text().replace("name: s0", f"name: '{name}'"))
    assert main(["render", "-o", "out"]) == 2
    assert "shards" in capsys.readouterr().err


@pytest.mark.parametrize("how", [(), ("-o", "out"), ("--check", ".")], ids=["printed", "written", "checked"])
def test_nothing_of_the_asked_kind_is_a_refusal(file, capsys, how):
    assert main(["render", "--kind", "redisinstance", "--kind", "Namespace", *how]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "no object of the fleet has the kind redisinstance, Namespace" in error


def test_an_asked_kind_that_is_lacking_beside_others_is_named(file, capsys):
    assert main(["render", "--kind", "RedisInstance", "--kind", "deployment", "--shard", "s0"]) == 0
    printed, error = capsys.readouterr()
    assert printed.count("kind: Deployment") == 1
    assert "no object of s0 alone has the kind RedisInstance." in error


def test_a_template_chooses_what_a_file_holds_and_not_where_it_lies(file, tmp_path):
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "pubsubtopic.yaml.j2").write_text("kind: Topic\nmetadata: {name: ../../../victim}\n")
    assert main(["render", "--kind", "PubSubTopic", "--templates", "templates", "-o", "out"]) == 0
    assert {path for path in tree(tmp_path / "out") if path.endswith(".yaml")} == {
        "fleet/pubsubtopic-data-writes.yaml",
        "fleet/pubsubtopic-data-writes-dead.yaml",
    }

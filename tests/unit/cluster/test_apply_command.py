"""`shardctl apply` as it is called: what it prints, when it refuses, and its exit codes."""

import json

import pytest
from cluster_kit import FLEET, SHARDS, cluster_for, fleet_of, kubectl_of

from shardctl.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET + "provisioner: config-connector\n" + SHARDS)
    return path


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = cluster_for(fleet_of())
    folder = tmp_path / "bin"
    folder.mkdir()
    with kubectl_of(cluster, folder, monkeypatch):
        yield cluster


def run(file, *options):
    return main(["apply", "-f", str(file), *options])


def test_a_fleet_is_applied_and_a_second_run_changes_nothing(file, cluster, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(tmp_path / "audit"))
    assert run(file) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines.index("create PubSubSubscription/orders-s0-g1") < lines.index("create Deployment/orders-s0")
    assert f"namespace writers: as {file} says; " in err
    begun, done = map(json.loads, (tmp_path / "audit").read_text().splitlines())
    assert (begun["action"], begun["result"], done["result"]) == ("apply", "begun", "done")
    assert begun["plan"] == {"namespace": "writers", "create": len(lines)}
    assert run(file) == 0
    assert capsys.readouterr().out == ""


def test_a_dry_run_shows_everything_and_changes_nothing(file, cluster, capsys):
    assert run(file) == 0
    before = [*cluster.writes]
    text = file.read_text().replace("provisioner: config-connector", "autoscaling: {kind: none, min: 3}")
    file.write_text(text.replace("consumer:1.0.0", "consumer:1.0.1"))
    capsys.readouterr()
    assert run(file, "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "+        image: example.com/consumer:1.0.1\n" in out
    assert "delete HorizontalPodAutoscaler/orders-s1\n" in out
    assert "Dry run: 2 update, " in err
    assert "2 delete" in err
    assert cluster.writes == before


def test_nothing_is_deleted_or_applied_without_yes(file, cluster, capsys):
    assert run(file) == 0
    before = [*cluster.writes]
    file.write_text(file.read_text().replace("provisioner: config-connector", "autoscaling: none"))
    capsys.readouterr()
    assert run(file) == 1
    out, err = capsys.readouterr()
    assert out == "delete HorizontalPodAutoscaler/orders-s0\ndelete HorizontalPodAutoscaler/orders-s1\n"
    assert "Nothing was done. `shardctl apply --yes`" in err
    assert cluster.writes == before
    assert run(file, "--no-prune") == 0
    assert len(cluster.names("HorizontalPodAutoscaler")) == 2
    assert run(file, "--yes") == 0
    assert cluster.names("HorizontalPodAutoscaler") == []


def test_a_conflict_names_the_field_its_owner_and_the_way(file, cluster, capsys):
    assert run(file) == 0
    path = ["spec", "template", "spec", "containers", "consumer", "image"]
    cluster.set_by("kubectl-set", "Deployment", "orders-s0", path, "example.com/other")
    assert run(file) == 1
    err = capsys.readouterr().err
    assert (
        "refused Deployment/orders-s0: others own what the file sets: .spec.template.spec.containers.consumer.image"
        in err
    )
    assert 'owned by "kubectl-set"' in err
    assert run(file, "--force-conflicts") == 0
    assert cluster.find("Deployment", "orders-s0")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(
        ":1.0.0"
    )


def test_a_missing_secret_stops_it_before_anything_is_done(file, cluster, capsys):
    del cluster.objects["v1", "secrets", "writers", "orders-redis"]
    assert run(file) == 1
    assert "error: nothing was done:\n- Secret orders-redis isn't in namespace writers" in capsys.readouterr().err
    assert cluster.writes == []


def test_a_rollout_that_takes_too_long_is_exit_1_and_the_next_run_finishes(file, cluster, capsys):
    cluster.stuck.add("Deployment/orders-s1")
    assert run(file, "--wait-at-most", "0s") == 1
    err = capsys.readouterr().err
    assert "rollout: waiting, 0 s so far:\n  Deployment/orders-s1: 0 of 1 pods are available" in err
    assert "kubectl describe Deployment/orders-s1 -n writers" in err
    cluster.stuck.clear()
    assert run(file) == 0


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--context", "nope"], 1, 'context "nope" does not exist. See `kubectl config get-contexts`'),
        (["--namespace", "other"], 2, "--namespace other: the file's objects lie in namespace writers"),
        (["--wait-at-most", "soon"], 2, "--wait-at-most"),
    ],
)
def test_what_cant_be_done_is_refused_with_a_reason(file, cluster, capsys, options, code, part):
    assert run(file, *options) == code
    assert part in capsys.readouterr().err
    assert cluster.writes == []


def test_a_cluster_that_does_not_answer(file, cluster, capsys):
    cluster.down = "dial tcp 10.0.0.1:443: i/o timeout"
    assert run(file) == 1
    assert "dial tcp 10.0.0.1:443: i/o timeout" in capsys.readouterr().err


def test_without_kubectl(file, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run(file) == 1
    assert "kubectl isn't on the PATH" in capsys.readouterr().err

"""A rebalance whose steps run as Jobs in a cluster, on a broker and SQLite: its files travel, and a pod that dies loses none."""

import os
import signal
from pathlib import Path

import pytest
from cluster_kit import Cluster, kubectl_of
from job_kit import database_secret, kubelet_of

from shardctl import lockfile
from shardctl.cli import main
from shardctl.cluster.manifests import manifests
from shardctl.fleet.load import load_fleet

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(site, tmp_path, monkeypatch):
    """The settled fleet with an operator, and the databases' URLs in Secrets alone."""
    site.next.unlink()
    site.file.write_text(site.file.read_text().replace("routing:", "operator: {}\nrouting:"))
    fleet = load_fleet(site.file)
    lockfile.write(site.file, fleet)
    cluster = Cluster(fleet.namespace)
    for name in ("s0", "s1", "s2"):
        database_secret(cluster, fleet.namespace, f"orders-{name}-db", site.world.url(name))
        monkeypatch.delenv(f"SHARDCTL_DATABASE_URL_{name.upper()}")
    for manifest in manifests(fleet):
        plural = {"ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps", "Role": "roles"}.get(manifest.id.kind)
        if manifest.id.name == "orders-operator" and plural:
            cluster.put(manifest.api_version, plural, fleet.namespace, dict(manifest.body))
    for folder in ("bin", "node"):
        (tmp_path / folder).mkdir()
    with (
        kubectl_of(cluster, tmp_path / "bin", monkeypatch),
        kubelet_of(cluster, tmp_path / "node", "orders-operator"),
    ):
        yield cluster


def go(*arguments):
    return main(["job", "--follow", "--", "rebalance", "go", *arguments])


@pytest.mark.proof
def test_a_rebalance_goes_from_its_plan_to_its_end_in_jobs(site, cluster, capsys):
    """The loop of the documentation, with a pod that dies after the files have changed."""

    def kill_once(process, line):
        if "now has the content of" in line and not cluster.kubelet.codes:
            process.kill()

    cluster.kubelet.seen = kill_once
    before = site.file.read_text()
    assert go("--add", "s2", "--yes", "--gitops", "deploy") == 4
    out, err = capsys.readouterr()
    assert "no plan moves fewer" in out
    assert "Commit and merge: `git add --all deploy shards.yaml shards.lock`" in err
    assert "orders-s0-g1" in Path("deploy/shards/s0/configmap.yaml").read_text()
    assert "runs the command again" in err
    assert "shards.yaml is to be applied where this Job was started" in err
    assert "Then continue with the same Job." in err
    assert cluster.kubelet.codes == [137, 4]
    assert load_fleet(site.file).rebalancing
    assert (site.file.parent / "shards.before.yaml").read_text() == before
    assert not site.next.exists()
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "open")

    site.apply()
    assert go("--add", "s2", "--yes", "--gitops=deploy") == 4
    out, err = capsys.readouterr()
    assert "orders-s0-g1" not in Path("deploy/shards/s0/configmap.yaml").read_text()
    assert "16 of 16 slots handed over" in out
    assert "this alone is left" in err
    settled = load_fleet(site.file)
    assert not settled.rebalancing
    assert lockfile.read(site.file) == lockfile.lock_of(settled)
    assert not any(name.endswith(("s0-g1", "s1-g1")) for name in site.subscriptions())

    site.apply()
    assert go("--add", "s2", "--yes") == 0
    assert "is what these options ask for" in capsys.readouterr().err


def test_ctrl_c_interrupts_the_command_in_its_pod(site, cluster, capsys):
    assert go("--add", "s2", "--yes") == 4
    site.deaf = True  # no barrier is met, so the command doesn't end by itself
    site.apply()
    capsys.readouterr()

    cluster.kubelet.seen = lambda _, line: "16 slots, " in line and os.kill(os.getpid(), signal.SIGINT)
    assert main(["job", "--follow", "--", "rebalance", "run", "--yes"]) == 130
    err = capsys.readouterr().err
    assert "Interrupting the command: Job orders-rebalance-run-" in err
    assert "is gone. What the command has done stays done." in err
    assert cluster.kubelet.codes == [4, 130]
    assert not any("rebalance-run" in name for name in cluster.names("Job"))

"""With the real kubectl in between: its proxy, its kubeconfig, and its own server-side apply beside ours."""

import json
import os
import shutil
import subprocess
import threading

import pytest
from cluster_kit import FLEET, SHARDS, cluster_for, fleet_of, serve
from job_kit import database_secret, kubelet_of

from shardctl.cli import main
from shardctl.cluster.kubectl import connected
from shardctl.fleet.load import load_fleet
from shardctl.local.servers.family import alive, children
from shardctl.local.servers.process import free_port
from shardctl.provision import provision_database

KUBECTL = shutil.which("kubectl")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(KUBECTL is None, reason="kubectl isn't on the PATH")]
CONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: here, context: {{cluster: test}}}}]
current-context: here
"""


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    """Writes a kubeconfig for the API server at a port of loopback."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "cache"))
    return lambda port: (tmp_path / "config").write_text(CONFIG.format(port=port))


@pytest.fixture
def cluster(kubeconfig):
    cluster = cluster_for(fleet_of("provisioner: api"))
    with serve(cluster) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        kubeconfig(server.server_port)
        yield cluster
        server.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(f"{FLEET}{SHARDS}")
    return path


def test_what_kubectl_applied_is_as_the_file_says_and_owned_by_the_same_manager(file, cluster, capsys):
    assert main(["render", "-f", str(file)]) == 0
    rendered = capsys.readouterr().out.encode()
    command = [KUBECTL, "apply", "--server-side", "--validate=false", "--filename", "-"]
    ran = subprocess.run(command, input=rendered, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    applied = ran.stdout.decode().splitlines()
    assert len(applied) == rendered.count(b"---\n")
    assert main(["diff", "-f", str(file), "--no-pubsub"]) == 0
    assert main(["apply", "-f", str(file), "--context", "here"]) == 0
    assert {manager for owners in cluster.managers.values() for manager in owners} == {("kubectl", "")}
    file.write_text(file.read_text().replace("consumer:1.0.0", "consumer:1.0.1"))
    assert main(["apply", "-f", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == ["update Deployment/orders-s0", "update Deployment/orders-s1"]


def test_nobody_at_the_other_end(file, kubeconfig, capsys):
    kubeconfig(free_port())
    assert main(["apply", "-f", str(file)]) == 1
    err = capsys.readouterr().err
    assert "error: the cluster doesn't answer: HTTP 500: dial tcp 127.0.0.1:" in err
    assert "connection refused" in err


def test_a_jobs_log_comes_through_the_proxy_line_by_line(file, cluster, tmp_path, capsys):
    file.write_text(file.read_text().replace("shards:", "operator: {}\nshards:"))
    fleet = load_fleet(file)
    for shard in fleet.shards:
        url = f"sqlite:///{tmp_path}/{shard.name}.db"
        provision_database(fleet, shard, url)
        database_secret(cluster, fleet.namespace, f"orders-{shard.name}-db", url)
    cluster.put("v1", "serviceaccounts", fleet.namespace, {"metadata": {"name": "orders-operator"}})
    (tmp_path / "node").mkdir()
    with kubelet_of(cluster, tmp_path / "node", "orders-operator"):
        assert main(["job", "-f", str(file), "--follow", "--context", "here", "--", "parked", "list", "--json"]) == 0
        out, err = capsys.readouterr()
        assert "> " not in out
        assert json.loads(out) is not None
        assert "shardctl parked list --json" in err
        assert cluster.kubelet.codes == [0]


def test_the_proxy_ends_with_the_block(cluster):
    before = set(children(os.getpid()))
    with connected() as api:
        assert api.version() == (1, 36)
        shells = set(children(os.getpid())) - before
        proxies = [child for shell in shells for child in children(shell)]
        assert len(proxies) == 1
    assert not any(map(alive, [*shells, *proxies]))

"""`shardctl job` as it is called: a command in the cluster, from its start to its exit code, and what keeps it from starting."""

import json
import os
import shutil
import signal
import time

import pytest
from cluster_kit import FLEET, Cluster, kubectl_of
from job_kit import database_secret, kubelet_of
from migrate_kit import revision_text
from patience import PATIENCE_SECONDS
from sqlalchemy import inspect

from shardctl.cli import main
from shardctl.cluster import jobs
from shardctl.cluster.api import Api
from shardctl.cluster.manifests import manifests
from shardctl.fleet.load import fleet_from, load_fleet
from shardctl.fleet.yamlfile import parse
from shardctl.provision import provision_database
from shardctl.shard.database import connect, writing
from shardctl.shard.schema import lanes

pytestmark = pytest.mark.slow

SHARDS = "operator: {}\nprovisioner: api\nshards:\n  - {name: s0, slots: 0-7}\n  - {name: s1, slots: 8-15}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET + SHARDS)
    return path


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    """A folder with databases that have the tables of the fleet."""
    folder, fleet = tmp_path_factory.mktemp("databases"), fleet_from(parse(FLEET + SHARDS))
    for shard in fleet.shards:
        provision_database(fleet, shard, f"sqlite:///{folder}/{shard.name}.db")
    return folder


@pytest.fixture
def urls(provisioned, tmp_path):
    shutil.copytree(provisioned, tmp_path, dirs_exist_ok=True)
    return {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("s0", "s1")}


@pytest.fixture
def cluster(file, urls, tmp_path, monkeypatch):
    """With what `shardctl apply` makes, and the Secrets."""
    monkeypatch.setenv("SHARDCTL_ACTOR", "ann@desk")
    cluster = Cluster("writers")
    for name, url in urls.items():
        database_secret(cluster, "writers", f"orders-{name}-db", url)
    with kubectl_of(cluster, _folder(tmp_path / "bin"), monkeypatch):
        apply(cluster, file)
        with kubelet_of(cluster, _folder(tmp_path / "node"), "orders-operator"):
            yield cluster


def _folder(path):
    path.mkdir()
    return path


def apply(cluster, file):
    """The operator's own objects: the others aren't needed."""
    for manifest in manifests(load_fleet(file)):
        if manifest.id.name == "orders-operator":
            plural = {"ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps", "Role": "roles"}.get(
                manifest.id.kind
            )
            if plural:
                cluster.put(manifest.api_version, plural, "writers", dict(manifest.body))


def job(file, *arguments):
    return main(["job", "-f", str(file), *arguments])


def jobs_of(cluster):
    return [name.removeprefix("Job/") for name in cluster.names("Job")]


def test_the_log_is_parted_into_data_and_messages_and_the_exit_code_passes_through(file, cluster, capsys):
    assert job(file, "--follow", "--", "verify", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verified"] is True
    assert "Verified: every row is where its slot is active" in err
    (name,) = jobs_of(cluster)
    assert name.startswith("orders-verify-")
    assert f"Job {name} in namespace writers: shardctl verify --json" in err
    (command,) = cluster.kubelet.commands
    assert command[-4:] == ["verify", "-f", "shards.yaml", "--json"]
    assert cluster.kubelet.environments[0]["SHARDCTL_ACTOR"] == "ann@desk"
    assert cluster.kubelet.view.requests == []


def test_a_refusal_isnt_tried_again(file, urls, cluster, capsys):
    with writing(connect(urls["s1"])) as connection:
        connection.execute(lanes.delete())
    assert job(file, "--follow", "--", "verify") == 1
    out, err = capsys.readouterr()
    assert "shard s1" in out
    assert "1 fault." in err
    assert len(cluster.kubelet.commands) == 1


def test_what_was_killed_is_run_again(file, cluster, capsys):
    def kill_the_first(process):
        if len(cluster.kubelet.commands) == 1:
            process.kill()

    cluster.kubelet.before = kill_the_first
    assert job(file, "--follow", "--", "verify") == 0
    _, err = capsys.readouterr()
    assert "runs the command again" in err
    assert len(cluster.kubelet.commands) == 2


@pytest.mark.proof
def test_a_schema_change_has_its_revisions_with_it_and_continues_after_a_kill(file, urls, cluster, capsys):
    folder = _folder(file.parent / "migrations")
    adding = "op.add_column('orders', sa.Column('{}', sa.Text()))"
    (folder / "r1.py").write_text(revision_text("r1", None, adding.format("note")))
    (folder / "r2.py").write_text(revision_text("r2", "r1", adding.format("memo")))

    def kill_the_first(process, line):
        if len(cluster.kubelet.commands) == 1 and "r1 (Change) done" in line:
            process.kill()

    cluster.kubelet.seen = kill_the_first
    assert job(file, "--follow", "--", "migrate", "apply", "--yes") == 0
    _, err = capsys.readouterr()
    assert "every shard has revision r2" in err
    assert len(cluster.kubelet.commands) == 2
    for url in urls.values():
        engine = connect(url)
        assert {"note", "memo"} < {column["name"] for column in inspect(engine).get_columns("orders")}
        engine.dispose()
    (folder / "r2.py").unlink()
    assert job(file, "--follow", "--", "migrate", "status") == 1
    assert "has revision r2, which no file in migrations is" in capsys.readouterr().err


def test_what_must_not_run_twice_isnt(file, cluster, capsys):
    cluster.kubelet.before = lambda process: process.kill()
    assert job(file, "--follow", "--", "parked", "drop", "k", "--yes") == 1
    _, err = capsys.readouterr()
    assert "the command didn't end by itself: exit code 137, OOMKilled" in err
    assert "operator.resources.memory_limit" in err
    assert len(cluster.kubelet.commands) == 1


def test_two_commands_that_change_files_dont_run_at_once(file, cluster, capsys):
    cluster.kubelet.unschedulable = "no node"
    running = {
        "labels": {"app.kubernetes.io/part-of": "orders", "shardctl/changes-files": "true"},
        "name": "orders-provision-1",
    }
    cluster.put("batch/v1", "jobs", "writers", {"metadata": running})
    assert job(file, "--", "provision") == 1
    assert (
        "Job orders-provision-1 in namespace writers runs, and it changes the fleet's files" in capsys.readouterr().err
    )
    assert jobs_of(cluster) == ["orders-provision-1"]


def remove(*key):
    return lambda cluster: cluster.objects.pop(key)


@pytest.mark.parametrize(
    ("break_it", "texts"),
    [
        (
            remove("v1", "serviceaccounts", "writers", "orders-operator"),
            ["ServiceAccount orders-operator isn't in namespace writers", "`shardctl apply` makes it"],
        ),
        (
            remove("v1", "secrets", "writers", "orders-s1-db"),
            ["Secret orders-s1-db isn't in namespace writers", "`kubectl create secret generic orders-s1-db"],
        ),
        (
            remove("v1", "namespaces", "", "writers"),
            ["namespace writers doesn't exist", "`kubectl create namespace writers`"],
        ),
        (
            lambda cluster: cluster.denied.add(("get", "pods/log")),
            ["you may not get pods/log in namespace writers", "docs/jobs.md"],
        ),
        (
            lambda cluster: setattr(cluster, "down", "dial tcp 10.0.0.1:443: i/o timeout"),
            ["the cluster doesn't answer", "i/o timeout"],
        ),
    ],
    ids=["account", "secret", "namespace", "rights", "unreachable"],
)
def test_what_a_job_would_wait_for_in_vain_is_said_before_it_starts(file, cluster, capsys, break_it, texts):
    break_it(cluster)
    assert job(file, "--follow", "--", "verify") == 1
    _, err = capsys.readouterr()
    for text in texts:
        assert text in err
    assert jobs_of(cluster) == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            {"unschedulable": "0/3 nodes are available: 3 Insufficient memory."},
            "Unschedulable: 0/3 nodes are available",
        ),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
            "ImagePullBackOff: Back-off",
        ),
    ],
    ids=["nodes", "image"],
)
def test_a_job_that_doesnt_start_is_deleted(file, cluster, capsys, state, text):
    for name, value in state.items():
        setattr(cluster.kubelet, name, value)
    assert job(file, "--start-within", "1s", "--", "verify") == 1
    _, err = capsys.readouterr()
    assert text in err
    assert "didn't start, and was deleted" in err
    assert jobs_of(cluster) == []


def test_the_same_command_is_one_job(file, cluster, capsys):
    gate = _folder(file.parent / "gate") / "open"
    cluster.kubelet.before = lambda process: _until(gate.exists)
    assert job(file, "--", "verify") == 0
    (name,) = jobs_of(cluster)
    assert capsys.readouterr().out == f"Job/{name}\n"
    assert job(file, "--", "verify") == 1
    assert "runs the same command already: --follow shows it" in capsys.readouterr().err
    gate.touch()
    assert job(file, "--follow", "--", "verify") == 0
    first, err = capsys.readouterr()
    assert f"Job {name} runs already" in err or len(cluster.kubelet.commands) == 2
    assert job(file, "--follow", "--", "verify") == 0
    out, err = capsys.readouterr()
    assert f"Job {name} of an earlier run is deleted" in err
    assert out == first
    assert "The pod before was lost" not in err
    assert jobs_of(cluster) == [name]


def test_the_pods_of_an_earlier_job_of_that_name_are_not_its_own(file, cluster, capsys):
    """They live on for a while: the next Job hasn't started because they have."""
    assert job(file, "--follow", "--", "verify") == 0
    cluster.kubelet.unschedulable = "0/3 nodes are available"
    assert job(file, "--start-within", "1s", "--", "verify") == 1
    assert "didn't start, and was deleted" in capsys.readouterr().err


def test_a_job_without_a_pod_names_its_own_event_alone():
    """Events outlive the Job of an earlier run, which had the same name."""
    cluster = Cluster("writers")
    for uid, message in (("new", "exceeded quota"), ("old", "Container shardctl failed with exit code 4")):
        event = {"involvedObject": {"kind": "Job", "name": "orders-verify", "uid": uid}, "type": "Warning"}
        event |= {"metadata": {"name": f"orders-verify.{uid}"}, "reason": "FailedCreate", "message": message}
        cluster.put("v1", "events", "writers", event)
    api = Api(cluster.client())
    why = jobs.why_not_started(api, "writers", "orders-verify", "new", [])
    assert why == "Job orders-verify has no pod yet: FailedCreate: exceeded quota"
    assert jobs.why_not_started(api, "writers", "orders-verify", "newer", []) == "Job orders-verify has no pod yet"


def _until(reached):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_before_the_start_leaves_no_job(file, cluster, capsys):
    cluster.kubelet.unschedulable = "no node"
    log = cluster.kubelet._hold

    def interrupt(pod):
        log(pod)
        os.kill(os.getpid(), signal.SIGINT)

    cluster.kubelet._hold = interrupt
    assert job(file, "--follow", "--", "verify") == 130
    assert "is deleted; its command hadn't started" in capsys.readouterr().err
    assert jobs_of(cluster) == []

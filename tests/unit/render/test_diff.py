"""`shardctl diff` against an API server and the embedded broker, both of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_kit import Cluster, apply, cluster_for, kubectl_of

from shardctl.cli import main
from shardctl.cli.cluster import messages_in
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE
from shardctl.fleet.load import load_fleet
from tests.unit.render.cloud_kit import FLEET

pytestmark = pytest.mark.slow


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET)
    return path


@pytest.fixture
def cluster(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """What kubectl leads to; the file is applied there."""
    fleet = load_fleet(file)
    cluster = cluster_for(fleet)
    apply(cluster, fleet)
    folder = tmp_path / "bin"
    folder.mkdir()
    with kubectl_of(cluster, folder, monkeypatch):
        yield cluster


def run(file: Path, *options: str) -> int:
    return main(["diff", "-f", str(file), *options])


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_what_was_applied_is_as_the_file_says(file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--no-pubsub", "--context", "prod") == EXIT_DONE
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Kubernetes: as {file} says" in err
    assert "--context=prod" in Path(os.environ["FAKE_KUBECTL"], "calls").read_text()


def test_what_another_manager_set_is_shown_and_changes_nothing(
    file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["spec", "template", "spec", "containers", "consumer", "image"]
    cluster.set_by("kubectl-set", "Deployment", "orders-s0", path, "example.com/consumer:evil")
    writes = [*cluster.writes]
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert "update Deployment/orders-s0\n" in out
    assert "-        image: example.com/consumer:evil\n" in out
    assert "+        image: example.com/consumer:1.0.0\n" in out
    assert "drift" in err
    assert cluster.writes == writes


def test_a_refused_object_hides_no_other(file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.denied.add(("patch", "configmaps"))
    cluster.find("Deployment", "orders-s1")["spec"]["replicas"] = 5
    del cluster.objects["policy/v1", "poddisruptionbudgets", "writers", "orders-s0"]
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    lines = capsys.readouterr().out.splitlines()
    assert 'refused ConfigMap/orders-s0: configmaps "orders-s0" is forbidden: User "dev" cannot patch' in "\n".join(
        lines
    )
    assert "create PodDisruptionBudget/orders-s0" in lines


def test_objects_that_the_file_does_not_name_are_listed(
    file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(file, "autoscaling: {max: 8}", "autoscaling: none")
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    assert "unnamed HorizontalPodAutoscaler/orders-s1: " in capsys.readouterr().out


def test_a_stateful_sets_disks_cant_be_changed_in_place(
    file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(file, "autoscaling: {max: 8}", "workload: {kind: statefulset, storage: {size: 1Gi}}")
    apply(cluster, load_fleet(file))
    edit(file, "1Gi", "2Gi")
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    out = capsys.readouterr().out
    assert "unchangeable StatefulSet/orders-s0: " in out
    assert "kubectl delete statefulset orders-s0 -n writers --cascade=orphan" in out


def test_without_kubectl_the_way_out_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    assert "kubectl isn't on the PATH" in capsys.readouterr().err


def test_nothing_to_compare_is_a_usage_error(file: Path) -> None:
    assert run(file, "--no-pubsub", "--no-kubernetes") == EXIT_USAGE


def test_json_names_each_object(file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    del cluster.objects["policy/v1", "poddisruptionbudgets", "writers", "orders-s0"]
    assert run(file, "--no-pubsub", "--json") == EXIT_REFUSED
    report = json.loads(capsys.readouterr().out)
    assert report["pubsub"] is None
    name = {"kind": "PodDisruptionBudget", "name": "orders-s0", "namespace": "writers"}
    assert report["kubernetes"] == {
        "differs": True,
        "diff": "",
        "objects": [{"action": "create", **name, "diff": [], "problem": ""}],
        "unnamed": [],
        "unlisted": [],
    }


def test_json_is_printed_also_where_the_cluster_cant_be_reached(
    file: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.down = "dial tcp 10.0.0.1:443: connect: connection refused"
    assert run(file, "--no-pubsub", "--json") == EXIT_REFUSED
    out, err = capsys.readouterr()
    report = json.loads(out)["kubernetes"]
    assert report["differs"] is None
    assert "connection refused" in report["error"]
    assert "error: " in err


# --- Pub/Sub ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    command = [sys.executable, "-m", "shardctl", "broker", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield next(
            line.strip().partition("PUBSUB_EMULATOR_HOST=")[2]
            for line in process.stderr
            if "PUBSUB_EMULATOR_HOST=" in line
        )
        process.send_signal(signal.SIGINT)
        process.stderr.read()


@pytest.fixture
def provisioned(
    file: Path,
    broker: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """A fleet in a project of its own, its topics and subscriptions made; no lock beside it."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker)
    project = f"p-{request.node.name.replace('_', '-')}"[:30].rstrip("-")
    file.write_text(FLEET.replace("my-project", project))
    assert main(["provision", "-f", str(file), "--no-databases"]) == EXIT_DONE
    file.with_suffix(".lock").unlink()
    capsys.readouterr()
    return file


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_what_was_provisioned_is_as_the_file_says(provisioned: Path, cluster: Cluster) -> None:
    apply(cluster, load_fleet(provisioned), force=True)
    assert run(provisioned) == EXIT_DONE


def test_a_changed_setting_is_reported_with_both_values(provisioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(provisioned, "provisioner: terraform", "subscription: {ack_deadline: 30s, retry_minimum: 5s}")
    assert run(provisioned, "--no-kubernetes") == EXIT_REFUSED
    out, _ = capsys.readouterr()
    assert "update subscription" in out
    assert "  ack_deadline_seconds: 60 → 30\n" in out
    assert (
        "  retry_policy: minimum_backoff 1s, maximum_backoff 600s → minimum_backoff 5s, maximum_backoff 600s\n" in out
    )


def test_what_is_missing_is_reported(provisioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(provisioned, "generation: 3", "generation: 4")
    assert run(provisioned, "--no-kubernetes") == EXIT_REFUSED
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("create subscription ")
    assert line.endswith("/orders-s1-g4")


def test_what_cant_be_changed_in_place_is_named_with_the_safe_way(
    provisioned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(provisioned, "slots: 0-7}", "slots: 0-3}")
    edit(provisioned, "slots: 8-15,", "slots: 4-15,")
    assert run(provisioned, "--no-kubernetes", "--json") == EXIT_REFUSED
    report = json.loads(capsys.readouterr().out)
    assert report["kubernetes"] is None
    assert report["pubsub"]["differs"] is True
    lines = report["pubsub"]["unchangeable"]
    assert len(lines) == 2
    for line in lines:
        assert "its filter is" in line
        assert "shardctl rebalance" in line


# --- what `shardctl apply` asks of Pub/Sub ---------------------------------------------------------------------------------


def test_nothing_is_applied_while_subscriptions_are_missing_that_others_make(
    provisioned: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(provisioned, "generation: 3", "generation: 4")
    writes = [*cluster.writes]
    assert main(["apply", "-f", str(provisioned)]) == EXIT_REFUSED
    assert "/orders-s1-g4 doesn't exist: `terraform apply` first." in capsys.readouterr().err
    assert cluster.writes == writes


def test_the_backlog_of_a_subscription_that_is_gone_is_none_and_of_any_other_what_the_broker_counts(
    provisioned: Path,
) -> None:
    from google.cloud import pubsub_v1

    fleet = load_fleet(provisioned)
    publisher = pubsub_v1.PublisherClient(pubsub_v1.types.BatchSettings(max_messages=1))
    topic = publisher.topic_path(fleet.project, "data-writes")
    publisher.publish(topic, b"{}", slot="0000").result()
    backlogs, unknown = messages_in(fleet, ["orders-s0-g1", "orders-s1-g3", "gone"])
    assert (backlogs, unknown) == ({"orders-s0-g1": 1, "orders-s1-g3": 0, "gone": 0}, "")

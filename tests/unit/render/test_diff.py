"""`shardctl diff` against a kubectl of our own and the embedded broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shardctl.cli import main
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE
from shardctl.fleet.load import load_fleet
from shardctl.render import documents
from tests.unit.render.cloud_kit import FLEET

KUBECTL = """#!/bin/sh
printf '%s\\n' "$*" > "$FAKE_KUBECTL/arguments"
cat > "$FAKE_KUBECTL/stdin"
cat "$FAKE_KUBECTL/answer"
exit "$(cat "$FAKE_KUBECTL/code")"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET)
    return path


class Kubectl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        binary = folder / "kubectl"
        binary.write_text(KUBECTL)
        binary.chmod(0o755)
        self.answers(0)

    def answers(self, code: int, text: str = "") -> None:
        (self.folder / "code").write_text(str(code))
        (self.folder / "answer").write_text(text)

    @property
    def arguments(self) -> str:
        return (self.folder / "arguments").read_text().strip()

    @property
    def stdin(self) -> str:
        return (self.folder / "stdin").read_text()


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBECTL", str(folder))
    return Kubectl(folder)


def run(file: Path, *options: str) -> int:
    return main(["diff", "-f", str(file), *options])


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_kubectl_is_asked_about_every_document_on_the_servers_side(file: Path, kubectl: Kubectl) -> None:
    assert run(file, "--no-pubsub", "--context", "prod") == EXIT_DONE
    assert kubectl.arguments == "diff --server-side --filename - --context prod"
    found = list(documents(load_fleet(file)))
    assert [item["metadata"]["name"] for item in yaml.safe_load_all(kubectl.stdin)] == [item.name for item in found]


def test_what_differs_in_the_cluster_is_passed_through(
    file: Path, kubectl: Kubectl, capfd: pytest.CaptureFixture[str]
) -> None:
    kubectl.answers(1, "-  image: old\n+  image: new\n")
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    out, err = capfd.readouterr()
    assert out == "-  image: old\n+  image: new\n"
    assert "drift" in err


def test_a_failure_of_kubectl_is_no_drift(file: Path, kubectl: Kubectl, capfd: pytest.CaptureFixture[str]) -> None:
    kubectl.answers(2)
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    assert "kubectl diff failed with exit code 2" in capfd.readouterr().err


def test_without_kubectl_the_way_out_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(file, "--no-pubsub") == EXIT_REFUSED
    assert "kubectl isn't on the PATH" in capsys.readouterr().err


def test_nothing_to_compare_is_a_usage_error(file: Path) -> None:
    assert run(file, "--no-pubsub", "--no-kubernetes") == EXIT_USAGE


def test_json_holds_kubectls_answer(file: Path, kubectl: Kubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.answers(1, "+ new\n")
    assert run(file, "--no-pubsub", "--json") == EXIT_REFUSED
    assert json.loads(capsys.readouterr().out) == {
        "kubernetes": {"differs": True, "diff": "+ new\n"},
        "pubsub": None,
    }


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


def test_what_was_provisioned_is_as_the_file_says(provisioned: Path, kubectl: Kubectl) -> None:
    assert run(provisioned) == EXIT_DONE


def test_a_changed_setting_is_told_with_both_values(provisioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(provisioned, "provisioner: terraform", "subscription: {ack_deadline: 30s, retry_minimum: 5s}")
    assert run(provisioned, "--no-kubernetes") == EXIT_REFUSED
    out, _ = capsys.readouterr()
    assert "update subscription" in out
    assert "  ack_deadline_seconds: 60 → 30\n" in out
    assert (
        "  retry_policy: minimum_backoff 1s, maximum_backoff 600s → minimum_backoff 5s, maximum_backoff 600s\n" in out
    )


def test_what_is_missing_is_told(provisioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    told = report["pubsub"]["unchangeable"]
    assert len(told) == 2
    for line in told:
        assert "its filter is" in line
        assert "shardctl rebalance" in line

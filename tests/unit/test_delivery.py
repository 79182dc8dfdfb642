"""What the image and the pipelines promise, read from their files: no container engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardctl.render import documents
from tests.unit.render.cloud_kit import fleet_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
STAGES = [list(lines) for lines in ([], [])]
for _line in LINES:
    if _line.startswith("FROM "):
        STAGES[0], STAGES[1] = STAGES[1], []
    STAGES[1].append(_line)
BUILD, FINAL = STAGES


def arguments_of(stage: list[str], instruction: str) -> list[str]:
    return [line.removeprefix(f"{instruction} ").strip() for line in stage if line.startswith(f"{instruction} ")]


def test_the_base_is_pinned_by_its_digest() -> None:
    (base,) = arguments_of(LINES, "ARG")
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert [line.split()[0] for line in arguments_of(LINES, "FROM")] == ["${BASE}", "${BASE}"]


def test_it_runs_as_the_user_that_the_pods_name() -> None:
    (user,) = arguments_of(FINAL, "USER")
    (pod,) = (
        yaml.safe_load(document.text)["spec"]["template"]["spec"]["securityContext"]
        for document in documents(fleet_of(), kinds=["Deployment"], shards=["s0"])
    )
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    assert int(user.split(":")[0]) > 10_000


def test_the_final_stage_installs_and_downloads_nothing() -> None:
    assert not arguments_of(FINAL, "RUN")
    assert not arguments_of(LINES, "ADD")
    assert arguments_of(FINAL, "COPY") == ["--from=build /opt/shardctl /opt/shardctl"]
    assert "PYTHONDONTWRITEBYTECODE=1" in " ".join(arguments_of(FINAL, "ENV"))


def test_every_package_has_a_hash_and_none_is_compiled() -> None:
    installs = [part for line in arguments_of(BUILD, "RUN") for part in line.split("&&") if " install " in part]
    assert len(installs) == 3
    for install in installs:
        locked = "--require-hashes --only-binary :all: -r requirements/" in install
        assert locked or "--no-deps --no-index dist/*.whl" in install


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {word for line in arguments_of(BUILD, "COPY") for word in line.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_what_the_project_names_for_its_wheel_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for line in arguments_of(BUILD, "COPY") for word in line.split()[:-1]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    named = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"]}
    assert named | set(project["project"]["license-files"]) <= copied


def test_the_build_lock_holds_the_build_backend_alone() -> None:
    names = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/build.txt").read_text(), re.MULTILINE)
    assert "hatchling" in names
    assert len(names) < 10


# --- pipelines --------------------------------------------------------------------------------------------------------


def commands(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(map(commands, value.values()))
    return " ".join(map(commands, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("name", ["cloudbuild.yaml", ".github/workflows/deploy.yaml"])
def test_a_pipeline_renders_checks_compares_and_then_applies(name: str) -> None:
    text = commands(yaml.safe_load((ROOT / name).read_text()))
    steps = ["shardctl render", "--check", "--dry-run", "kubectl diff --server-side", "apply"]
    places = [text.rindex(step) for step in steps]
    assert places == sorted(places)
    assert "delete" not in text
    assert ":latest" not in text


def test_the_workflow_holds_no_key_and_asks_for_little() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yaml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["apply"]["permissions"] == {"contents": "read", "id-token": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/deploy.yaml").read_text()
    assert workflow["jobs"]["render"]["if"] == "vars.GKE_CLUSTER != ''"


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_tokens_may_read_alone(path: Path) -> None:
    text = path.read_text()
    used = [line for line in text.splitlines() if "uses:" in line]
    assert used
    for line in used:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_one_action_has_one_pin() -> None:
    pins = {match for path in WORKFLOWS for match in re.findall(r"uses: ([\w./-]+)@([0-9a-f]{40})", path.read_text())}
    names = [name for name, _ in pins]
    assert sorted(names) == sorted(set(names))


def test_a_release_states_what_it_is_made_of_and_what_built_it() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())["jobs"]
    package, image = ([step for step in jobs[name]["steps"] if "uses" in step] for name in ("package", "image"))
    attests = [step["with"] for step in package if step["uses"].startswith("actions/attest@")]
    assert [attest.get("sbom-path") for attest in attests] == [None, "shardctl.spdx.json"]
    (build,) = [step["with"] for step in image if step["uses"].startswith("docker/build-push-action@")]
    assert build["sbom"] is True
    assert build["provenance"] == "mode=max"


def test_the_pins_are_raised_by_dependabot() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "docker", "npm"}


# --- the image's steps ------------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.slow
def test_the_images_pip_steps_give_both_entry_points(tmp_path: Path) -> None:
    """As in the Dockerfile, with a folder for /opt/shardctl. The build backend is the one installed here."""

    def run(*command: str | Path, **options: Any) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout

    venv = tmp_path / "shardctl"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--quiet")
    run(*pip, "--require-hashes", "--only-binary", ":all:", "-r", ROOT / "requirements/runtime.txt")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist", cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(*pip, "--no-deps", "--no-index", wheel)
    here = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    assert run("shardctl", "--version", env=here, cwd=tmp_path).startswith("shardctl ")
    run("shardctl", "init", "--shards", "2", env=here, cwd=tmp_path)
    assert "kind: Deployment" in run("shardctl", "render", env=here, cwd=tmp_path)
    assert "topic()" in run("shardctl", "render", "--format", "gcloud", env=here, cwd=tmp_path)
    assert run("python", "-m", "shardctl", "--version", env=here, cwd=tmp_path).startswith("shardctl ")
    assert "--config" in run("python", "-m", "consumer", "--help", env=here, cwd=tmp_path)
    assert not (venv / "bin" / "pip").exists()

"""A command as a Job: its name, its environment, its security, and what becomes of a pod that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import KUBERNETES_VERSION, LOADER, fleet_of

from shardctl.fleet.spec import Fleet
from shardctl.render import jobs
from shardctl.render.jobs import Task

FILES = {"shards.yaml": "fleet: orders\n", "shards.lock": "{}\n"}
RUN = Task(("rebalance", "run"), ("--yes",), FILES)
OPERATOR = "operator: {}"


def rendered(task: Task, fleet: Fleet | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the Job, held against Kubernetes' schemas."""
    files, job = (yaml.load(document.text, LOADER) for document in jobs.documents(fleet or fleet_of(OPERATOR), task))
    for item in (files, job):
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)
    return files, job


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]["containers"][0]


def test_the_name_says_what_runs_and_is_the_same_for_the_same_command_on_the_same_files() -> None:
    fleet = fleet_of(OPERATOR)
    name = jobs.name_of(fleet, RUN)
    assert name.startswith("orders-rebalance-run-")
    assert name == jobs.name_of(fleet, replace(RUN, actor="somebody else"))
    others = [replace(RUN, arguments=()), replace(RUN, files={"shards.yaml": "another\n"})]
    assert len({name, *(jobs.name_of(fleet, other) for other in others)}) == 3


def test_a_long_name_fits() -> None:
    fleet = fleet_of(OPERATOR).model_copy(update={"fleet": "f" * 60})
    name = jobs.name_of(fleet, RUN)
    assert len(name) <= 63
    assert not name.startswith("-")


def test_the_files_are_whole_whatever_they_hold() -> None:
    texts = {"shards.yaml": "a: 1\n  # \ttab, ünicode, {{ braces }} and 'quotes'\n\n", "shards.lock": ""}
    files, _ = rendered(replace(RUN, files=texts))
    assert files["data"] == texts


def test_only_what_was_killed_is_tried_again() -> None:
    _, job = rendered(RUN)
    assert job["spec"]["backoffLimit"] == 6
    ignored, decided = job["spec"]["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"]) == (
        "Ignore",
        [{"type": "DisruptionTarget", "status": "True"}],
    )
    assert (decided["action"], decided["onExitCodes"]["values"]) == ("FailJob", [1, 2, 3, 4])
    assert decided["onExitCodes"]["containerName"] == container_of(job)["name"]
    _, once = rendered(replace(RUN, restarts=False))
    assert once["spec"]["backoffLimit"] == 0
    assert "podFailurePolicy" not in once["spec"]


def test_a_token_is_mounted_only_where_files_change() -> None:
    files, job = rendered(RUN)
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert "kubernetes" not in volumes
    assert files["metadata"]["name"] == job["metadata"]["name"]
    files, job = rendered(replace(RUN, words=("rebalance", "go"), changes_files=True))
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert "kubernetes" in volumes
    assert files["metadata"]["name"] == "orders-operator"
    assert container_of(job)["args"][4:6] == ["--keep-in", "orders-operator"]
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_the_pod_meets_the_restricted_pod_security_standard() -> None:
    _, job = rendered(RUN)
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 10_000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container_of(job)["securityContext"] == expected


def test_urls_come_from_secrets_also_of_shards_to_come() -> None:
    _, job = rendered(replace(RUN, new_shards=("s9", "s1")))
    variables = {entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in container_of(job)["env"]}
    assert variables == {f"SHARDCTL_DATABASE_URL_{name.upper()}": f"orders-{name}-db" for name in ("s0", "s1", "s9")}


def test_apply_does_not_take_a_job_for_what_the_file_no_longer_names() -> None:
    for item in rendered(RUN):
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] != "shardctl"


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
def test_one_proxy_leads_to_every_instance_at_a_port_of_its_own(engine: str) -> None:
    shards = "shards:\n" + "".join(
        f"  - {{name: s{number}, slots: {slots}, database: {{cloud_sql: {{instance: 'my-project:europe-west1:i{number}', "
        f"database: d, engine: {engine}, ip: private}}}}}}\n"
        for number, slots in enumerate(("0-7", "8-15"))
    )
    fleet = fleet_of(f"{OPERATOR}\ndatabases: [{engine}]", shards)
    _, job = rendered(RUN, fleet)
    (proxy,) = job["spec"]["template"]["spec"]["initContainers"]
    assert proxy["restartPolicy"] == "Always"
    assert proxy["args"][-2:] == [
        f"my-project:europe-west1:i{number}?port={6432 + number}&auto-iam-authn=true&private-ip=true"
        for number in (0, 1)
    ]
    values = {entry["name"]: entry["value"] for entry in container_of(job)["env"]}
    user = "orders-operator" if engine == "mysql" else "orders-operator%40my-project.iam"
    assert values["SHARDCTL_DATABASE_URL_S1"].startswith(f"{engine}://{user}@127.0.0.1:6433/d")

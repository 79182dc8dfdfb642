"""A Job in the cluster: whether it may begin, how it stands, and what keeps it from starting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shardctl.cluster import incluster
from shardctl.cluster.api import FORBIDDEN, Api, ClusterError, RefusedError, Resource
from shardctl.cluster.incluster import CONFIG_MAP
from shardctl.cluster.manifests import Manifest
from shardctl.cluster.readiness import pods_trouble
from shardctl.render.jobs import CONTAINER, digest_of

JOB = Resource("batch/v1", "Job", "jobs", namespaced=True)
POD = Resource("v1", "Pod", "pods", namespaced=True)
EVENT = Resource("v1", "Event", "events", namespaced=True)
# Waiting alone fixes none of these: the image isn't there, or isn't to be had with the node's credentials.
HOPELESS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
KILLED_CODES = 128  # from here on, an exit code is a signal's

State = Literal["active", "complete", "failed"]


class JobError(ClusterError):
    """A Job can't be started, or didn't start."""


def lacking_rights(api: Api, namespace: str) -> list[str]:
    """What the caller may not, of what starting a Job, following it and ending it takes."""
    needed = [("get", JOB, ""), ("list", JOB, ""), ("patch", JOB, ""), ("create", JOB, ""), ("delete", JOB, "")]
    needed += [("get", CONFIG_MAP, ""), ("patch", CONFIG_MAP, ""), ("create", CONFIG_MAP, ""), ("list", POD, "")]
    needed += [("get", POD, "log")]
    lacking: dict[str, list[str]] = {}
    for verb, resource, subresource in needed:
        if not api.allowed(verb, resource, namespace, subresource):
            what = f"{resource.plural}/{subresource}" if subresource else resource.plural
            lacking.setdefault(what, []).append(verb)
    return [
        f"you may not {', '.join(verbs)} {what} in namespace {namespace}. docs/jobs.md has the Role; `kubectl auth whoami` says "
        "who you are."
        for what, verbs in lacking.items()
    ]


def start(api: Api, files: Manifest, job: Manifest, *, changes_files: bool) -> None:
    """The files first, since the pod mounts them. Safe to run again, after a kill anywhere.

    Files that the command changes are kept until a caller takes them over; others go with the Job.
    """
    if changes_files:
        texts = files.body["data"]
        incluster.write_files(api, files.id.namespace, files.id.name, texts, digest_of(texts))
        api.apply(JOB, job)
        return
    api.apply(CONFIG_MAP, files)
    uid = api.apply(JOB, job)["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.id.name, "uid": uid}
    metadata = {**files.body["metadata"], "ownerReferences": [owner]}
    api.apply(CONFIG_MAP, replace(files, body={**files.body, "metadata": metadata}))


def state_of(job: Mapping[str, Any]) -> State:
    """By its conditions, which come when no pod of it is left running."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    true = {condition.get("type") for condition in conditions if condition.get("status") == "True"}
    return "complete" if "Complete" in true else "failed" if "Failed" in true else "active"


def is_active(job: Mapping[str, Any]) -> bool:
    return state_of(job) == "active"


def why_failed(job: Mapping[str, Any]) -> str:
    conditions = (job.get("status") or {}).get("conditions") or ()
    failed = [condition for condition in conditions if condition.get("type") == "Failed"]
    return f"{failed[0].get('reason', 'Failed')}: {failed[0].get('message', '')}".rstrip(": ") if failed else ""


def pods_of(api: Api, namespace: str, name: str, uid: str) -> list[dict[str, Any]]:
    """The Job's pods, the oldest first. Those of an earlier Job of that name live on for a while after it was deleted."""
    pods = [
        pod
        for pod in api.objects(POD, namespace, f"batch.kubernetes.io/job-name={name}")
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))


def container_of(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the container that runs the command: `waiting`, `running` or `terminated`; empty before there is one."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            return container.get("state") or {}
    return {}


def has_started(pod: Mapping[str, Any]) -> bool:
    return bool({"running", "terminated"} & container_of(pod).keys())


def exit_code(pod: Mapping[str, Any]) -> int | None:
    """Of the command; None while it runs, and where it never ran."""
    code: int | None = container_of(pod).get("terminated", {}).get("exitCode")
    return code


def how_ended(pod: Mapping[str, Any]) -> str:
    """In words, where it wasn't the command that decided so."""
    ended = container_of(pod).get("terminated", {})
    reason = ended.get("reason", "") or (pod.get("status") or {}).get("reason", "")
    hint = ": it took more memory than operator.resources.memory_limit allows" if reason == "OOMKilled" else ""
    return f"exit code {ended.get('exitCode', 'unknown')}" + (f", {reason}{hint}" if reason else "")


def why_not_started(api: Api, namespace: str, name: str, uid: str, pods: Sequence[Mapping[str, Any]]) -> str:
    """What keeps the Job from starting, in one sentence, as far as the cluster says."""
    if trouble := pods_trouble(pods):
        return trouble
    for pod in pods:
        status = pod.get("status") or {}
        for container in status.get("initContainerStatuses") or ():
            if not container.get("started"):
                return (
                    f"pod {pod['metadata']['name']}: {container['name']} isn't ready: `kubectl logs {pod['metadata']['name']} "
                    f"-c {container['name']} -n {namespace}`"
                )
        return f"pod {pod['metadata']['name']} is starting{_last_event(api, namespace, pod['metadata']['uid'])}"
    return f"Job {name} has no pod yet{_last_event(api, namespace, uid)}"


def _last_event(api: Api, namespace: str, uid: str) -> str:
    """The last warning about an object; empty where there is none, or where the caller may not list events.

    By its uid: events outlive their object, and a Job of the same name may have come before.
    """
    try:
        events = [
            event
            for event in api.objects(EVENT, namespace, "")
            if event.get("involvedObject", {}).get("uid") == uid and event.get("type") == "Warning"
        ]
    except RefusedError as error:
        if error.code != FORBIDDEN:
            raise
        return ""
    if not events:
        return ""
    last = max(events, key=lambda event: event.get("lastTimestamp") or "")
    return f": {last.get('reason', '')}: {last.get('message', '')}"

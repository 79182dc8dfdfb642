"""Whether an applied object has become what it should be: rolled out, or ready by what its controller reports. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardctl.render.kinds import WORKLOADS

CONTROLLED = frozenset({"PubSubTopic", "PubSubSubscription", "IAMServiceAccount", "IAMPolicyMember", "ExternalSecret"})
AWAITED = CONTROLLED | WORKLOADS
# What a pod waits for while it starts as it should.
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Unready:
    """Why. `failed`: its controller has given up, so waiting alone won't help."""

    reason: str
    failed: bool = False

    def __str__(self) -> str:
        return self.reason


def unready(live: Mapping[str, Any]) -> Unready | None:
    """Why the object isn't ready yet; None when it is, or is of a kind that nobody waits for."""
    if live["kind"] in CONTROLLED:
        return _condition(live)
    if live["kind"] == "Deployment":
        return _deployment(live)
    return _stateful_set(live) if live["kind"] == "StatefulSet" else None


def _condition(live: Mapping[str, Any]) -> Unready | None:
    """By the condition Ready, as Config Connector and External Secrets report it."""
    status = live.get("status") or {}
    if status.get("observedGeneration", live["metadata"].get("generation")) != live["metadata"].get("generation"):
        return Unready("its controller hasn't seen the change yet")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready":
            if condition.get("status") == "True":
                return None
            return Unready(f"{condition.get('reason', 'not ready')}: {condition.get('message', '')}".rstrip(": "))
    return Unready("its controller hasn't reported anything yet; is it running, and does it watch this namespace?")


def _deployment(live: Mapping[str, Any]) -> Unready | None:
    """As `kubectl rollout status` decides."""
    status, wanted = live.get("status") or {}, live["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return Unready("its controller hasn't seen the change yet")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return Unready("its rollout has made no progress for too long", failed=True)
    updated, everything = status.get("updatedReplicas", 0), status.get("replicas", 0)
    available = status.get("availableReplicas", 0)
    if updated < wanted:
        return Unready(f"{updated} of {wanted} pods are new")
    if everything > updated:
        return Unready(f"{everything - updated} old pods have yet to stop")
    return Unready(f"{available} of {updated} pods are available") if available < updated else None


def _stateful_set(live: Mapping[str, Any]) -> Unready | None:
    status, wanted = live.get("status") or {}, live["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return Unready("its controller hasn't seen the change yet")
    ready, updated = status.get("readyReplicas", 0), status.get("updatedReplicas", 0)
    if ready < wanted:
        return Unready(f"{ready} of {wanted} pods are ready")
    if status.get("updateRevision") != status.get("currentRevision"):
        return Unready(f"{updated} of {wanted} pods are new")
    return None


def pods_trouble(pods: Iterable[Mapping[str, Any]]) -> str:
    """What keeps the first pod that has trouble from being ready; empty when none reports anything."""
    for pod in sorted(pods, key=lambda entry: str(entry["metadata"]["name"])):
        status = pod.get("status") or {}
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") and waiting["reason"] not in _STARTING:
                return f"pod {pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return (
                    f"pod {pod['metadata']['name']}: {condition.get('reason')}: {condition.get('message', '')}".rstrip(
                        ": "
                    )
                )
    return ""

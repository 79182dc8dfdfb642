"""What applying a manifest would change: the server's own answer, by a dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any, Literal

import yaml

from shardctl.cluster.api import FORBIDDEN, NOT_FOUND, Api, RefusedError, Resource
from shardctl.cluster.kubectl import AT_ONCE
from shardctl.cluster.manifests import Manifest
from shardctl.cluster.ownership import applied

Action = Literal["create", "update", "identical", "unchangeable", "refused"]
INVALID = 422
# What the server keeps for itself, or changes at each write.
_SERVERS = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class Change:
    """`diff` is a unified diff of an update; `problem` says why nothing can be applied, and the next step.

    `namespace_to_come`: it lies in a namespace that isn't there yet, so no server has looked at it.
    """

    manifest: Manifest
    action: Action
    diff: tuple[str, ...] = ()
    problem: str = ""
    namespace_to_come: bool = False

    @property
    def blocked(self) -> bool:
        return self.action in {"unchangeable", "refused"}

    def __str__(self) -> str:
        return f"{self.action} {self.manifest.id}" + (f": {self.problem}" if self.problem else "")


class Preview:
    """Compares with what is live. `resources` are the kinds that the server has; `force`: as if every field were the fleet's."""

    def __init__(self, api: Api, resources: Mapping[str, Resource], *, force: bool) -> None:
        self._api = api
        self._resources = resources
        self._force = force

    def of(self, manifests: tuple[Manifest, ...]) -> tuple[Change, ...]:
        """In the same order. One object that is refused doesn't keep the others from being compared. Raises UnreachableError."""
        to_come = {manifest.id.name for manifest in manifests if manifest.id.kind == "Namespace"}
        to_come = {name for name in to_come if self._live_namespace(name) is None}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="preview") as threads:
            return tuple(threads.map(lambda manifest: self._change(manifest, to_come), manifests))

    def _live_namespace(self, name: str) -> dict[str, Any] | None:
        resource = self._resources.get("Namespace")
        return self._api.get(resource, "", name) if resource else None

    def _change(self, manifest: Manifest, to_come: set[str]) -> Change:
        if manifest.id.namespace in to_come:
            return Change(manifest, "create", namespace_to_come=True)
        resource = self._resources.get(manifest.id.kind)
        if resource is None:
            return Change(
                manifest, "refused", problem=f"the cluster doesn't serve {manifest.id.kind} {manifest.api_version}"
            )
        try:
            live = self._api.get(resource, manifest.id.namespace, manifest.id.name)
            after = applied(self._api, resource, manifest, live, force=self._force, dry_run=True)
        except RefusedError as error:
            return _refused(manifest, error)
        if live is None:
            return Change(manifest, "create")
        lines = tuple(difference(live, after, str(manifest.id)))
        return Change(manifest, "update" if lines else "identical", lines)


def difference(live: Mapping[str, Any], after: Mapping[str, Any], name: str) -> Iterator[str]:
    """A unified diff, without what the server keeps for itself."""
    before_text, after_text = _text(live), _text(after)
    if before_text != after_text:
        yield from unified_diff(
            before_text.splitlines(), after_text.splitlines(), f"live/{name}", f"file/{name}", lineterm=""
        )


def _text(live: Mapping[str, Any]) -> str:
    metadata = {name: value for name, value in live["metadata"].items() if name not in _SERVERS}
    shown = {name: value for name, value in live.items() if name != "status"} | {"metadata": metadata}
    return str(yaml.dump(shown, Dumper=_DUMPER, allow_unicode=True, default_flow_style=False, width=130))


def _refused(manifest: Manifest, error: RefusedError) -> Change:
    if error.conflict:
        return Change(manifest, "refused", problem=conflict_text(error))
    if error.code == INVALID and manifest.id.kind == "StatefulSet" and "updates to statefulset spec" in str(error):
        return Change(
            manifest, "unchangeable", problem=_DISKS.format(name=manifest.id.name, namespace=manifest.id.namespace)
        )
    if error.code in {INVALID, FORBIDDEN} and "immutable" in str(error):
        return Change(
            manifest, "unchangeable", problem=f"{str(error).rstrip('.')}. Delete the object, and apply the file again."
        )
    if error.code == FORBIDDEN:
        return Change(
            manifest, "refused", problem=f"{error}. Ask for the right, or see who you are: `kubectl auth whoami`"
        )
    if error.code == NOT_FOUND:
        return Change(manifest, "refused", problem=f"{error}. Make it first")
    return Change(manifest, "refused", problem=str(error))


_DISKS = (
    "Kubernetes changes neither a StatefulSet's volumeClaimTemplates nor its selector or serviceName. The safe way "
    "keeps pods and disks: `kubectl delete statefulset {name} -n {namespace} --cascade=orphan`, then apply the file. "
    "Disks that are there keep their size: a larger one is asked for in each PersistentVolumeClaim"
)


def conflict_text(error: RefusedError) -> str:
    fields = "; ".join(f"{field} (owned by {owner})" for field, owner in error.fields.items())
    return (
        f"others own what the file sets: {fields}. `shardctl diff` shows the values; --force-conflicts sets the "
        "file's, and takes the fields over"
    )

"""Applying a fleet: in an order in which no pod starts before its subscription, with waits that say what they wait for.

It remembers nothing: each run asks the cluster what is there. So it may be killed anywhere, and the next run finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, Protocol

from shardctl.cluster.api import Api, ClusterError, RefusedError, Resource, UnreachableError
from shardctl.cluster.changes import Change, conflict_text
from shardctl.cluster.kubectl import AT_ONCE
from shardctl.cluster.manifests import Manifest
from shardctl.cluster.ownership import applied
from shardctl.cluster.readiness import AWAITED, Unready, pods_trouble, unready
from shardctl.cluster.surplus import Deletions, Surplus, selector
from shardctl.fleet.spec import Fleet
from shardctl.render.kinds import WORKLOADS, Stage, stage_of

SHOWN = 8  # reasons for one wait
_AGAIN = "What was applied stays; fix it, and run the same again"


class ApplyError(ClusterError):
    """Something was refused, or didn't become ready. What was applied before stays, and the next run continues."""


class Patience(Protocol):
    """How long a wait may take. `until` returns False when it took too long, and calls `tell` so that none is silent."""

    def until(self, reasons: Callable[[], Sequence[str]], tell: Callable[[Sequence[str], float], None]) -> bool: ...


class Report(Protocol):
    def done(self, what: str) -> None: ...

    def waits(self, what: str, reasons: Sequence[str], seconds: float) -> None: ...


class Run:
    """Applies what was previewed. `force` takes over fields that others own."""

    def __init__(
        self,
        api: Api,
        fleet: Fleet,
        resources: Mapping[str, Resource],
        patience: Patience,
        report: Report,
        *,
        force: bool,
    ) -> None:
        self._api = api
        self._fleet = fleet
        self._resources = resources
        self._patience = patience
        self._report = report
        self._force = force

    def to_its_end(self, changes: Sequence[Change], deletions: Deletions) -> None:
        """Raises ApplyError, UnreachableError."""
        stages = {
            stage: [change for change in changes if stage_of(change.manifest.id.kind) is stage] for stage in Stage
        }
        self._apply(stages[Stage.NAMESPACE])
        self._apply(stages[Stage.CLOUD])
        self._wait_for("Google Cloud", stages[Stage.CLOUD])
        self._apply(stages[Stage.CONFIGURATION])
        self._wait_for("Secrets", stages[Stage.CONFIGURATION])
        self._delete(deletions.autoscalers)  # else they would set the numbers that the workloads now state
        self._apply(stages[Stage.WORKLOADS])
        self._apply(stages[Stage.AROUND])
        self._wait_for("rollout", stages[Stage.WORKLOADS])
        self._delete(deletions.others)  # last: until then the old pods need what they use

    def _apply(self, changes: Sequence[Change]) -> None:
        """Kind after kind; the objects of one at once. What is as it should be is applied too: the fields become the fleet's."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="apply") as threads:
            for _, same_kind in groupby(changes, key=lambda change: change.manifest.id.kind):
                for done in list(threads.map(self._apply_one, same_kind)):
                    if done.action != "identical":
                        self._report.done(f"{done.action} {done.manifest.id}")

    def _apply_one(self, change: Change) -> Change:
        manifest = change.manifest
        resource, name = self._resources[manifest.id.kind], manifest.id
        try:
            live = self._api.get(resource, name.namespace, name.name) if name.kind in WORKLOADS else None
            applied(self._api, resource, manifest, live, force=self._force)
        except RefusedError as error:
            why = conflict_text(error) if error.conflict else str(error)
            raise ApplyError(f"{name}: {why}. {_AGAIN}.") from error
        return change

    def _delete(self, surplus: Sequence[Surplus]) -> None:
        for entry in surplus:
            try:
                if self._api.delete(self._resources[entry.id.kind], entry.id, entry.uid):
                    self._report.done(f"delete {entry.id}")
            except RefusedError as error:
                raise ApplyError(f"{entry.id} can't be deleted: {error}. {_AGAIN}.") from error

    def _wait_for(self, what: str, changes: Sequence[Change]) -> None:
        """Until every object is ready. Raises ApplyError when that takes too long, or a controller has given up."""
        awaited = [change.manifest for change in changes if change.manifest.id.kind in AWAITED]
        last: dict[str, Unready] = {}

        def reasons() -> list[str]:
            last.clear()
            try:
                last.update(self._unready(awaited))
            except UnreachableError as error:  # an API server that restarts is no reason to stop
                return [str(error)]
            if failed := [f"{name}: {why}" for name, why in last.items() if why.failed]:
                raise ApplyError(f"{what}: {'; '.join(failed)}. {_look(awaited, failed)}")
            return [f"{name}: {why}" for name, why in last.items()][:SHOWN]

        def tell(why: Sequence[str], seconds: float) -> None:
            self._report.waits(what, why, seconds)

        if not self._patience.until(reasons, tell):
            raise ApplyError(
                f"{what}: {len(last) or 'some'} of {len(awaited)} objects aren't ready; the reasons are above. "
                f"{_look(awaited, [*last])}"
            )

    def _unready(self, awaited: Sequence[Manifest]) -> dict[str, Unready]:
        """By object. Each kind is listed once, however many shards there are."""
        reasons = {}
        for kind, manifests in groupby(awaited, key=lambda manifest: manifest.id.kind):
            live = {
                entry["metadata"]["name"]: entry
                for entry in self._api.objects(self._resources[kind], self._fleet.namespace, selector(self._fleet))
            }
            for manifest in manifests:
                why = self._why_unready(manifest, live.get(manifest.id.name) or self._get(manifest))
                if why is not None:
                    reasons[str(manifest.id)] = why
        return reasons

    def _get(self, manifest: Manifest) -> dict[str, Any] | None:
        """One that isn't among the listed: a template of the user's may lack the labels."""
        return self._api.get(self._resources[manifest.id.kind], manifest.id.namespace, manifest.id.name)

    def _why_unready(self, manifest: Manifest, live: Mapping[str, Any] | None) -> Unready | None:
        if live is None:
            return Unready("it has been deleted meanwhile", failed=True)
        why = unready(live)
        if why is None or manifest.id.kind not in WORKLOADS:
            return why
        trouble = self._pods_trouble(manifest)
        return Unready(f"{why}; {trouble}", why.failed) if trouble else why

    def _pods_trouble(self, manifest: Manifest) -> str:
        """Only a hint: it is left out where the caller may not list pods."""
        labels = manifest.body["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        pods = Resource("v1", "Pod", "pods", namespaced=True)
        try:
            return pods_trouble(self._api.objects(pods, manifest.id.namespace, selector))
        except RefusedError:
            return ""


def _look(awaited: Sequence[Manifest], names: Sequence[str]) -> str:
    first = names[0].partition(":")[0] if names else str(awaited[0].id)
    return f"Look at it: `kubectl describe {first} -n {awaited[0].id.namespace}`. {_AGAIN}."

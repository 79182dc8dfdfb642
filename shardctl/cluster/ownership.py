"""Who owns the number of replicas: the file, or an autoscaler. Everything else in a manifest is the file's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardctl.cluster.api import FIELD_MANAGER, Api, RefusedError, Resource
from shardctl.cluster.manifests import Manifest
from shardctl.render.kinds import WORKLOADS

REPLICAS = ".spec.replicas"
# Kubernetes' own autoscaler, and KEDA, which scales from and to zero by itself.
AUTOSCALERS = frozenset({"kube-controller-manager", "keda"})


def applied(
    api: Api,
    resource: Resource,
    manifest: Manifest,
    live: Mapping[str, Any] | None,
    *,
    force: bool,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Apply; what the object is then. `live` is what it was. Raises as `Api.apply` does.

    - A number that an autoscaler left behind is taken over where the file states one: with `autoscaling: none` nobody scales.
    - A number that the file stated until now stays until the new autoscaler sets it. Dropped at once it would become 1.
    """
    carried = _with_live_replicas(manifest, live)
    try:
        return api.apply(resource, carried, force=force, dry_run=dry_run)
    except RefusedError as error:
        if not _owned_by_autoscaler(error):
            raise
    # An autoscaler has just set what was carried: then nobody has to state it any more.
    return api.apply(resource, manifest, force=carried is manifest, dry_run=dry_run)


def _with_live_replicas(manifest: Manifest, live: Mapping[str, Any] | None) -> Manifest:
    spec = manifest.body.get("spec", {})
    if manifest.id.kind not in WORKLOADS or live is None or "replicas" in spec or not _owns_replicas(live):
        return manifest
    return replace(manifest, body={**manifest.body, "spec": {**spec, "replicas": live["spec"]["replicas"]}})


def _owns_replicas(live: Mapping[str, Any]) -> bool:
    return any(
        entry.get("manager") == FIELD_MANAGER
        and entry.get("operation") == "Apply"
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", ())
    )


def _owned_by_autoscaler(error: RefusedError) -> bool:
    owners = [re.match(r'"([^"]*)"', owner) for owner in error.fields.values()]
    return set(error.fields) == {REPLICAS} and all(owner and owner[1] in AUTOSCALERS for owner in owners)

"""`shardctl diff`: compares what the file says with what is live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.cluster import ContextOption, NamespaceOption, TemplatesOption, say_unlisted, site
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_diff, print_json, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, ShardctlError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from shardctl.cluster.changes import Change
    from shardctl.cluster.surplus import Unnamed
    from shardctl.fleet.spec import Fleet
    from shardctl.render.drift import PubSubDrift


@dataclass(frozen=True, slots=True)
class ClusterDrift:
    """`changes` are those that aren't identical; `unnamed` is what the cluster has beside them."""

    changes: Sequence[Change]
    unnamed: Unnamed

    def __bool__(self) -> bool:
        return bool(self.changes or self.unnamed.surplus)


def diff(
    file: FileOption = DEFAULT_FILE,
    no_kubernetes: Annotated[
        bool, typer.Option("--no-kubernetes", help="Compare only topics and subscriptions.")
    ] = False,
    no_pubsub: Annotated[bool, typer.Option("--no-pubsub", help="Compare only the cluster.")] = False,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    templates: TemplatesOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compare with the cluster and with Pub/Sub; exit 1 where they differ or can't be compared. Changes nothing.

    In the cluster it needs the verbs get, list, patch and create on the kinds that are rendered: it asks the server by dry runs.
    """
    from shardctl import lockfile
    from shardctl.fleet.load import load_fleet

    if no_kubernetes and no_pubsub:
        raise UsageError("--no-kubernetes and --no-pubsub together leave nothing to compare.")
    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    cluster = None if no_kubernetes else _cluster(fleet, context, namespace, templates)
    pubsub = None if no_pubsub else _pubsub(fleet)
    sides = {"Kubernetes": cluster, "Pub/Sub": pubsub}
    if as_json:
        print_json({"kubernetes": _cluster_json(cluster), "pubsub": _pubsub_json(pubsub)})
    else:
        _print(cluster, pubsub)
    errors = [side for side in sides.values() if isinstance(side, ShardctlError)]
    for error in errors:
        say(f"error: {error}")
    compared = {name: side for name, side in sides.items() if side is not None and side not in errors}
    differs = any(compared.values())
    if differs:
        say(f"drift: what is live isn't what {file} says")
    elif compared:
        say(f"{' and '.join(compared)}: as {file} says")
    return EXIT_REFUSED if errors or differs else EXIT_DONE


def _cluster(
    fleet: Fleet, context: str | None, namespace: str | None, templates: Path | None
) -> ClusterDrift | ShardctlError:
    """Or why it can't be compared, which doesn't keep the other side from being compared."""
    from shardctl.cluster.api import ClusterError
    from shardctl.cluster.changes import Preview

    try:
        with site(fleet, context, namespace, templates) as there, waiting("the server's dry run of every object"):
            changes = Preview(there.api, there.resources, force=True).of(there.manifests)
            unnamed = there.unnamed()
    except ClusterError as error:
        return error
    return ClusterDrift([change for change in changes if change.action != "identical"], unnamed)


def _pubsub(fleet: Fleet) -> PubSubDrift | ShardctlError:
    from shardctl.cli.provision import pubsub_clients
    from shardctl.render.drift import pubsub_drift

    try:
        with pubsub_clients(fleet) as (publisher, subscriber), waiting(f"Pub/Sub, project {fleet.project}"):
            return pubsub_drift(fleet, publisher, subscriber)
    except ShardctlError as error:
        return error


def _print(cluster: ClusterDrift | ShardctlError | None, pubsub: PubSubDrift | ShardctlError | None) -> None:
    from shardctl.render.drift import PubSubDrift, step_text

    if isinstance(cluster, ClusterDrift):
        for change in cluster.changes:
            out(str(change))
            print_diff(change.diff)
        for entry in cluster.unnamed.surplus:
            out(f"unnamed {entry.id}: the file doesn't name it; `shardctl apply` says whether it can be deleted")
        say_unlisted(cluster.unnamed)
    if isinstance(pubsub, PubSubDrift):
        for step in pubsub.steps:
            out(step_text(step))
        for unchangeable in pubsub.unchangeable:
            out(f"unchangeable {unchangeable}")


def _cluster_json(side: ClusterDrift | ShardctlError | None) -> dict[str, Any] | None:
    if not isinstance(side, ClusterDrift):
        return _error_json(side)
    return {
        "differs": bool(side),
        "diff": "".join(f"{line}\n" for change in side.changes for line in change.diff),
        "objects": [
            {
                "action": change.action,
                **_named(change.manifest.id),
                "diff": list(change.diff),
                "problem": change.problem,
            }
            for change in side.changes
        ],
        "unnamed": [_named(entry.id) for entry in side.unnamed.surplus],
        "unlisted": list(side.unnamed.unlisted),
    }


def _named(name: Any) -> dict[str, str]:
    return {"kind": name.kind, "name": name.name, "namespace": name.namespace}


def _pubsub_json(side: PubSubDrift | ShardctlError | None) -> dict[str, Any] | None:
    from shardctl.render.drift import PubSubDrift

    if not isinstance(side, PubSubDrift):
        return _error_json(side)
    return {
        "differs": bool(side),
        "steps": [
            {"action": step.action, "kind": step.kind, "name": step.name, "fields": list(step.fields)}
            for step in side.steps
        ],
        "unchangeable": list(side.unchangeable),
    }


def _error_json(side: ShardctlError | None) -> dict[str, Any] | None:
    """`differs` is unknown where the side couldn't be asked; None for a side that was left out."""
    return {"differs": None, "error": str(side)} if side is not None else None

"""`shardctl diff`: compares what is rendered with what is live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.render.drift import KubernetesDrift, PubSubDrift


def diff(
    file: FileOption = DEFAULT_FILE,
    no_kubernetes: Annotated[
        bool, typer.Option("--no-kubernetes", help="Compare only topics and subscriptions.")
    ] = False,
    no_pubsub: Annotated[bool, typer.Option("--no-pubsub", help="Compare only the cluster.")] = False,
    context: Annotated[str | None, typer.Option("--context", metavar="NAME", help="kubectl's context.")] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", metavar="DIR", help="Templates that override the built-in ones.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare with the cluster and with Pub/Sub; exit 1 where they differ. Changes nothing."""
    from shardctl import lockfile
    from shardctl.fleet.load import load_fleet

    if no_kubernetes and no_pubsub:
        raise UsageError("--no-kubernetes and --no-pubsub together leave nothing to compare.")
    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    cluster = None if no_kubernetes else _kubernetes(fleet, context, templates, capture=as_json)
    pubsub = None if no_pubsub else _pubsub(fleet)
    if as_json:
        print_json(_as_json(cluster, pubsub))
    elif pubsub is not None:
        _print(pubsub)
    matches = not (cluster and cluster.differs) and not pubsub
    looked_at = " and ".join(["Kubernetes"] * (cluster is not None) + ["Pub/Sub"] * (pubsub is not None))
    say(f"{looked_at}: as {file} says" if matches else f"drift: what is live isn't what {file} says")
    return EXIT_DONE if matches else EXIT_REFUSED


def _kubernetes(fleet: Fleet, context: str | None, templates: Path | None, *, capture: bool) -> KubernetesDrift:
    from shardctl.render import documents
    from shardctl.render.drift import kubernetes_drift

    texts = [document.text for document in documents(fleet, templates=templates)]
    sys.stdout.flush()  # kubectl writes past Python's buffer
    return kubernetes_drift(texts, context=context, capture=capture)


def _pubsub(fleet: Fleet) -> PubSubDrift:
    from shardctl.cli.provision import pubsub_clients
    from shardctl.render.drift import pubsub_drift

    with pubsub_clients() as (publisher, subscriber), waiting(f"Pub/Sub, project {fleet.project}"):
        return pubsub_drift(fleet, publisher, subscriber)


def _print(pubsub: PubSubDrift) -> None:
    from shardctl.render.drift import step_text

    for step in pubsub.steps:
        out(step_text(step))
    for unchangeable in pubsub.unchangeable:
        out(f"unchangeable {unchangeable}")


def _as_json(cluster: KubernetesDrift | None, pubsub: PubSubDrift | None) -> dict[str, Any]:
    return {
        "kubernetes": cluster and {"differs": cluster.differs, "diff": cluster.diff},
        "pubsub": None
        if pubsub is None
        else {
            "differs": bool(pubsub),
            "steps": [
                {"action": step.action, "kind": step.kind, "name": step.name, "fields": list(step.fields)}
                for step in pubsub.steps
            ],
            "unchangeable": list(pubsub.unchangeable),
        },
    }

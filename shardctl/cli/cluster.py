"""What the commands on a cluster share: their options, the connection, and what is in Pub/Sub beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.terminal import say, waiting
from shardctl.errors import UsageError

if TYPE_CHECKING:
    from shardctl.cluster.api import Api, Resource
    from shardctl.cluster.manifests import Manifest
    from shardctl.cluster.surplus import Deletions, Unnamed
    from shardctl.fleet.spec import Fleet

ContextOption = Annotated[str | None, typer.Option("--context", metavar="NAME", help="kubectl's context.")]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="The namespace that you mean; refused unless it is the file's."
    ),
]
TemplatesOption = Annotated[
    Path | None, typer.Option("--templates", metavar="DIR", help="Templates that override the built-in ones.")
]


@dataclass(frozen=True, slots=True)
class Site:
    """A fleet, what it renders, and the cluster that it belongs in. `resources` are the kinds that the cluster has."""

    fleet: Fleet
    manifests: tuple[Manifest, ...]
    api: Api
    resources: Mapping[str, Resource]

    def unnamed(self) -> Unnamed:
        from shardctl.cluster import surplus

        return surplus.find(self.api, self.fleet, self.manifests, self.resources)

    def deletions(self, unnamed: Unnamed) -> Deletions:
        """What of it may be deleted, by the backlogs of the subscriptions among it."""
        from shardctl.cluster import surplus

        backlogs, unknown = messages_in(self.fleet, surplus.subscriptions(unnamed.surplus))
        return surplus.deletions(self.fleet, unnamed.surplus, backlogs, unknown)


@contextmanager
def site(fleet: Fleet, context: str | None, namespace: str | None, templates: Path | None) -> Iterator[Site]:
    """Raises UsageError for another namespace, ClusterError where nobody answers."""
    from shardctl.cluster import kubectl, requirements
    from shardctl.cluster.manifests import manifests

    refuse_another_namespace(fleet, namespace)
    rendered = manifests(fleet, templates)
    with kubectl.connected(context, namespace) as api:
        with waiting(f"the cluster of context {context}" if context else "the cluster"):
            resources = requirements.served(api, rendered)
        yield Site(fleet, rendered, api, resources)


def refuse_another_namespace(fleet: Fleet, namespace: str | None) -> None:
    if namespace is not None and namespace != fleet.namespace:
        raise UsageError(
            f"--namespace {namespace}: the file's objects lie in namespace {fleet.namespace}. Change `namespace` in "
            "the file to move the fleet; two namespaces with one file would read the same subscriptions."
        )


def messages_in(fleet: Fleet, names: Sequence[str]) -> tuple[dict[str, int | None], str]:
    """Undelivered messages by subscription, None where the number is unknown, and why. One that is gone holds none."""
    from shardctl.cli.provision import pubsub_clients
    from shardctl.cli.rebalance.work import backlogs_of
    from shardctl.errors import ShardctlError
    from shardctl.rebalance import closing

    if not names:
        return {}, ""
    try:
        with pubsub_clients(fleet) as (_, subscriber), waiting(f"Pub/Sub, project {fleet.project}"):
            existing = closing.there(subscriber, fleet, names)
            backlogs, unknown = backlogs_of(fleet, existing)
    except ShardctlError as error:
        return dict.fromkeys(names), str(error)
    known = {name: backlogs[name].messages if name in backlogs else None for name in existing}
    return {name: 0 for name in names if name not in existing} | known, unknown


def say_unlisted(unnamed: Unnamed) -> None:
    if unnamed.unlisted:
        say(
            f"not looked for, since you may not list them: {', '.join(unnamed.unlisted)}. "
            "The cluster may have more of the fleet's."
        )


def missing_subscriptions(fleet: Fleet) -> tuple[list[str], str]:
    """Topics and subscriptions that are missing where Config Connector doesn't make them; or why that is unknown."""
    from shardctl.cli.provision import pubsub_clients
    from shardctl.errors import ShardctlError
    from shardctl.render.drift import pubsub_drift

    if fleet.provisioner == "config-connector":
        return [], ""
    try:
        with pubsub_clients(fleet) as (publisher, subscriber), waiting(f"Pub/Sub, project {fleet.project}"):
            steps = pubsub_drift(fleet, publisher, subscriber).steps
    except ShardctlError as error:
        return [], str(error)
    made_by = {
        "terraform": "`terraform apply`",
        "gcloud": "`shardctl render --format gcloud | sh`",
        "api": "`shardctl provision`",
    }
    missing = [
        f"{step.kind} {step.name} doesn't exist: {made_by[fleet.provisioner]} first."
        for step in steps
        if step.action == "create"
    ]
    return missing, ""


def refuse(reasons: Sequence[str]) -> None:
    """Raises ClusterError with all of the reasons, if there are any."""
    from shardctl.cluster.api import ClusterError

    if reasons:
        raise ClusterError("nothing was done:\n" + "\n".join(f"- {reason}" for reason in reasons))

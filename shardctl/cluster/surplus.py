"""The fleet's objects in the cluster that the file doesn't name, and which of them may be deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardctl.cluster.api import FORBIDDEN, Api, RefusedError, Resource
from shardctl.cluster.manifests import Manifest, Name, in_order_of_deletion, name_of
from shardctl.fleet.spec import Fleet
from shardctl.render.kinds import AUTOSCALERS, KEPT, KINDS


@dataclass(frozen=True, slots=True)
class Surplus:
    """An object with the fleet's labels. `uses` is the subscription that it reads or grants, if it is about one."""

    id: Name
    uid: str
    shard: str
    uses: str = ""


@dataclass(frozen=True, slots=True)
class Unnamed:
    """`unlisted` are kinds that the caller may not list, so what is there of them is unknown."""

    surplus: tuple[Surplus, ...]
    unlisted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deletions:
    """`deleted` in the order to delete them; `left` with the reason for each."""

    deleted: tuple[Surplus, ...]
    left: tuple[tuple[Surplus, str], ...]

    @property
    def autoscalers(self) -> tuple[Surplus, ...]:
        """Deleted before anything is applied: they would fight with what takes their place."""
        return tuple(entry for entry in self.deleted if entry.id.kind in AUTOSCALERS)

    @property
    def others(self) -> tuple[Surplus, ...]:
        return tuple(entry for entry in self.deleted if entry.id.kind not in AUTOSCALERS)


def selector(fleet: Fleet) -> str:
    return f"app.kubernetes.io/part-of={fleet.fleet},app.kubernetes.io/managed-by=shardctl"


def find(api: Api, fleet: Fleet, manifests: Sequence[Manifest], resources: Mapping[str, Resource]) -> Unnamed:
    """`resources` are the kinds of the table that the server has. Raises ClusterError."""
    named = {manifest.id for manifest in manifests}
    surplus: list[Surplus] = []
    unlisted = []
    for kind in KINDS:
        # A namespace may have been there before the fleet, and may hold others' objects.
        if kind not in resources or kind == "Namespace":
            continue
        try:
            surplus += (entry for entry in _objects(api, fleet, resources[kind]) if entry.id not in named)
        except RefusedError as error:
            if error.code != FORBIDDEN:
                raise
            unlisted.append(kind)
    order = {name: number for number, name in enumerate(in_order_of_deletion(entry.id for entry in surplus))}
    return Unnamed(tuple(sorted(surplus, key=lambda entry: order[entry.id])), tuple(unlisted))


def _objects(api: Api, fleet: Fleet, resource: Resource) -> Iterator[Surplus]:
    for live in api.objects(resource, fleet.namespace, selector(fleet)):
        metadata = live["metadata"]
        if metadata.get("ownerReferences"):  # another object's part, with its labels, as the HPA that KEDA makes
            continue
        spec = live.get("spec") or {}
        uses = metadata["name"] if resource.kind == "PubSubSubscription" else ""
        if resource.kind == "IAMPolicyMember" and spec.get("resourceRef", {}).get("kind") == "PubSubSubscription":
            uses = spec["resourceRef"].get("name", "")
        yield Surplus(
            name_of(live["apiVersion"], resource.kind, metadata),
            metadata["uid"],
            (metadata.get("labels") or {}).get("shard", ""),
            uses,
        )


def subscriptions(surplus: Sequence[Surplus]) -> tuple[str, ...]:
    """Those whose backlogs decide what may be deleted, by their objects' names, which are their ids."""
    return tuple(entry.id.name for entry in surplus if entry.id.kind == "PubSubSubscription")


def deletions(
    fleet: Fleet, surplus: Sequence[Surplus], backlogs: Mapping[str, int | None], why_unknown: str = ""
) -> Deletions:
    """What may be deleted. Pure. `backlogs` are undelivered messages by subscription; None where the number is unknown."""
    shards = {shard.name for shard in fleet.shards}
    kept = {name for name in subscriptions(surplus) if backlogs.get(name) != 0}
    abandoned = {
        entry.shard: entry.id.name
        for entry in surplus
        if entry.uses in kept and entry.shard and entry.shard not in shards
    }
    deleted, left = [], []
    for entry in surplus:
        if entry.id.kind in KEPT:
            left.append((entry, KEPT[entry.id.kind]))
        elif entry.id.kind == "PubSubSubscription" and entry.id.name in kept:
            left.append((entry, _backlog_text(backlogs.get(entry.id.name), why_unknown)))
        elif entry.uses in kept:
            left.append((entry, f"it grants subscription {entry.uses}, which is left"))
        elif entry.shard in abandoned:
            left.append(
                (entry, f"the shard's consumers are needed while subscription {abandoned[entry.shard]} is left")
            )
        else:
            deleted.append(entry)
    return Deletions(tuple(deleted), tuple(left))


def _backlog_text(messages: int | None, why_unknown: str) -> str:
    if messages is None:
        why = f", since {why_unknown}" if why_unknown else ""
        return f"its backlog is unknown{why}; it is deleted once it is known to be empty"
    return f"it has a backlog of {messages:,} messages; it is deleted once that is empty"

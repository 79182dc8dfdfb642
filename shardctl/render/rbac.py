"""What the pods may do in the cluster's own API: only where a shard elects its leader there."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.render.objects import Object, Plan, Writer


def roles(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        if asks_kubernetes(writer):
            yield plan.object("Role", writer.id, writer, lease=writer.id)


def role_bindings(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        if asks_kubernetes(writer):
            yield plan.object("RoleBinding", writer.id, writer, account=writer.id)


def asks_kubernetes(writer: Writer) -> bool:
    """Whether the shard's pods need a token for the cluster's API, and a way to it."""
    return writer.shard.leader.kind == "kubernetes"

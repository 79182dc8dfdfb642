"""Who the commands are that run in the cluster, and what each of them needs in Google Cloud. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from shardctl.fleet import serviceaccounts, sqlproxies, topology
from shardctl.fleet.settings.operator import EVERY_COMMAND, OperatorCommand
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

_VIEWER, _EDITOR = "roles/pubsub.viewer", "roles/pubsub.editor"
_SUBSCRIBER, _PUBLISHER = "roles/pubsub.subscriber", "roles/pubsub.publisher"
_BACKLOGS = "roles/monitoring.viewer"

On = Literal["project", "topics", "letters"]


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """`role` on the whole project, on each topic for writes, or on each subscription for dead letters and strays."""

    on: On
    role: str


# The least of Google's own roles. Only the project can be named where something is made, since it isn't there yet.
RIGHTS: Mapping[OperatorCommand, tuple[Right, ...]] = {
    "status": (Right("project", _BACKLOGS),),
    "verify": (),
    "provision": (Right("project", _EDITOR),),
    "adopt": (),
    "rebalance": (Right("project", _EDITOR), Right("project", _BACKLOGS)),
    "migrate": (),
    "deadletter": (
        Right("letters", _SUBSCRIBER),
        Right("letters", _VIEWER),
        Right("topics", _PUBLISHER),
        Right("project", _BACKLOGS),
    ),
    "parked": (),
}


def name_of(fleet: Fleet) -> str:
    return f"{fleet.fleet}-operator"


def email(fleet: Fleet) -> str:
    return serviceaccounts.email(fleet, name_of(fleet))


def rights(fleet: Fleet) -> tuple[Right, ...]:
    """Each once: what the operator's commands need together. An editor of the project has the narrower roles of Pub/Sub too."""
    commands = fleet.operator.commands if fleet.operator else ()
    needed = dict.fromkeys(right for command in EVERY_COMMAND if command in commands for right in RIGHTS[command])
    if Right("project", _EDITOR) in needed:
        return tuple(right for right in needed if right.on == "project")
    return tuple(needed)


def faults(fleet: Fleet) -> Iterator[Fault]:
    """What an operator can't have the name of, or can't reach."""
    if fleet.operator is None:
        return
    own = serviceaccounts.account_id(name_of(fleet))
    for number, shard in enumerate(fleet.shards):
        if serviceaccounts.account_id(topology.shard_id(fleet, shard)) == own:
            yield Fault(
                ("shards", number, "name"),
                f"the shard and the operator would share the service account {own}.",
                "name the shard differently.",
            )
    if fleet.gateway and serviceaccounts.account_id(f"{fleet.fleet}-gateway") == own:
        yield Fault(("operator",), f"the gateway would share the service account {own}.", "shorten the fleet's name.")
    yield from sqlproxies.faults(fleet, ("operator",), "a Job", email(fleet))

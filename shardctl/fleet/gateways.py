"""What a gateway can't reach. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.fleet import serviceaccounts, sqlproxies
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault


def name_of(fleet: Fleet) -> str:
    return f"{fleet.fleet}-gateway"


def email(fleet: Fleet) -> str:
    return serviceaccounts.email(fleet, name_of(fleet))


def reads_databases(fleet: Fleet) -> bool:
    return fleet.gateway is not None and fleet.gateway.outcomes is not None


def instances(fleet: Fleet) -> tuple[sqlproxies.Instance, ...]:
    """The instances of Cloud SQL that its pods reach."""
    return sqlproxies.instances(fleet) if reads_databases(fleet) else ()


def faults(fleet: Fleet) -> Iterator[Fault]:
    if reads_databases(fleet):
        yield from sqlproxies.faults(fleet, ("gateway", "outcomes"), "a gateway's pod", email(fleet))

"""What encrypts the fleet's messages and where they may be stored: what else these settings need. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault


def faults(fleet: Fleet) -> Iterator[Fault]:
    if fleet.topic.kms_key and fleet.project_number is None and fleet.provisioner != "api":
        yield Fault(
            ("topic", "kms_key"),
            "Pub/Sub's service agent, whose address holds the project's number, must be allowed to use the key.",
            f"set project_number, in quotes, to what `gcloud projects describe {fleet.project} "
            "--format='value(projectNumber)'` prints.",
        )


def warnings(fleet: Fleet) -> Iterator[str]:
    regions = fleet.topic.allowed_regions
    if len(regions) > 1:
        yield (
            f"topic.allowed_regions has {len(regions)} regions, and Pub/Sub keeps the order of an ordering key only within one: "
            "writes of a key, or a rebalance's barrier, that are published from different regions can overtake each other. "
            "Allow one region, or run everything that publishes, shardctl included, in one of them."
        )

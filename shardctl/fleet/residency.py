"""What encrypts the fleet's messages and where they may be stored: what else these settings need. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

_REGIONAL = re.compile(r"(?:([a-z0-9-]+)-pubsub|pubsub\.([a-z0-9-]+)\.rep)\.googleapis\.com(?::|$)")


def faults(fleet: Fleet) -> Iterator[Fault]:
    if fleet.topic.kms_key and fleet.project_number is None and fleet.provisioner != "api":
        yield Fault(
            ("topic", "kms_key"),
            "Pub/Sub's service agent, whose address holds the project's number, must be allowed to use the key.",
            f"set project_number, in quotes, to what `gcloud projects describe {fleet.project} "
            "--format='value(projectNumber)'` prints.",
        )


def warnings(fleet: Fleet) -> Iterator[str]:
    regions, endpoint = fleet.topic.allowed_regions, fleet.topic.endpoint
    region = region_of(endpoint) if endpoint else None
    if len(regions) > 1 and endpoint is None:
        yield (
            f"topic.allowed_regions has {len(regions)} regions, and Pub/Sub keeps the order of an ordering key only within one: "
            "writes of a key, or a rebalance's barrier, that are published from different regions can overtake each other. "
            "Allow one region; or set topic.endpoint to the regional endpoint of one, which producers of your own must use too."
        )
    if region and regions and region not in regions:
        yield (
            f"topic.endpoint leads to {region}, which isn't among topic.allowed_regions: messages are stored elsewhere than "
            "where they arrive. Name the endpoint of an allowed region."
        )


def region_of(endpoint: str) -> str | None:
    """The region of a regional endpoint of Google's, in either of its forms; None of any other host."""
    match = _REGIONAL.match(endpoint)
    return (match[1] or match[2]) if match else None

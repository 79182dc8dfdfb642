"""A shard's configuration as its ConfigMap holds it."""

from __future__ import annotations

import json

from shardctl.fleet.shardconfig import slice_of
from shardctl.fleet.spec import Fleet, Shard


def config_text(fleet: Fleet, shard: Shard) -> str:
    """The shard's slice as its ConfigMap holds it: defaults left out, keys sorted, a setting a line for short diffs."""
    settings = slice_of(fleet, shard).model_dump(mode="json", exclude_defaults=True)
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"

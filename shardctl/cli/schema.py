"""`shardctl schema`: the JSON Schema of shards.yaml, for editors."""

from __future__ import annotations

from shardctl.cli.terminal import print_json
from shardctl.errors import EXIT_DONE


def schema() -> int:
    """Print the JSON Schema of shards.yaml, for your editor."""
    from shardctl.fleet.spec import json_schema

    print_json(json_schema())
    return EXIT_DONE

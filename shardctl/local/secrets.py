"""The Secrets of HTTP backends on this machine: files in a folder that the environment names, as a pod has them mounted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardctl.errors import UsageError
from shardctl.fleet import backends
from shardctl.fleet.backends import SECRETS_VARIABLE
from shardctl.fleet.spec import Fleet


def environment(fleet: Fleet, given: Mapping[str, str]) -> dict[str, str]:
    """The environment by which consumers find them, if any type needs them. Raises UsageError where one is missing."""
    wanted = sorted(
        {(name, key) for shard in fleet.shards for name, keys in backends.secrets(fleet, shard).items() for key in keys}
    )
    if not wanted:
        return {}
    if not given.get(SECRETS_VARIABLE):
        raise UsageError(
            f"{SECRETS_VARIABLE} isn't set, and types with http need {', '.join(f'{name}/{key}' for name, key in wanted)}. "
            "Put them as files of these names into a folder, and name it there."
        )
    folder = Path(given[SECRETS_VARIABLE]).absolute()
    missing = [f"{name}/{key}" for name, key in wanted if not (folder / name / key).is_file()]
    if missing:
        raise UsageError(
            f"{folder} ({SECRETS_VARIABLE}) lacks {', '.join(missing)}: files that hold the keys of these Secrets"
        )
    return {SECRETS_VARIABLE: str(folder)}

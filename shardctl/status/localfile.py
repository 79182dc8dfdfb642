"""The file that lists a local fleet's consumers and databases, kept current while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardctl import atomicfile
from shardctl.errors import ShardctlError

VARIABLE = "SHARDCTL_LOCAL_FLEET"  # names the file


class LocalFileError(ShardctlError):
    """The file isn't there, or isn't one of ours."""


@dataclass(frozen=True, slots=True)
class LocalConsumer:
    """One replica; `url` is where it serves `/metrics` and `/ready`."""

    name: str
    shard: str
    url: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """`databases` are URLs by shard, with their passwords: the file is for our user alone.

    `follows` is the `shards.yaml` whose changes are applied to the fleet; "" where none is followed.
    """

    consumers: tuple[LocalConsumer, ...]
    databases: Mapping[str, str]
    follows: str = ""

    def write(self, path: Path) -> None:
        """Replace an earlier file atomically. Raises FileError."""
        content = {
            "consumers": [
                {"name": consumer.name, "shard": consumer.shard, "url": consumer.url} for consumer in self.consumers
            ],
            "databases": dict(self.databases),
            "follows": self.follows,
        }
        atomicfile.write(path, f"{json.dumps(content, indent=1)}\n".encode(), private=True)


def read(path: Path) -> LocalFile:
    """Raises LocalFileError."""
    try:
        content = json.loads(path.read_text())
        consumers = tuple(LocalConsumer(entry["name"], entry["shard"], entry["url"]) for entry in content["consumers"])
        urls = {str(name): str(url) for name, url in content["databases"].items()}
        return LocalFile(consumers, urls, str(content.get("follows", "")))
    except OSError as error:
        raise LocalFileError(
            f"{path}: {error.strerror}. {VARIABLE} names it; has the fleet ended? Read the env file of the one that runs."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocalFileError(
            f"{path} isn't the file of a local fleet, though {VARIABLE} names it. Read the env file of the one that runs."
        ) from error

"""The fleet's manifests, written to a folder and read back as a cluster would read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from shardctl.errors import ShardctlError
from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.spec import Fleet
from shardctl.render import documents, manifests


class BadManifestError(ShardctlError):
    """A rendered object that a cluster or Pub/Sub would refuse."""


def write(fleet: Fleet, folder: Path) -> int:
    """Render every object into `folder` and check it; how many there are. Raises BadManifestError.

    Files of an earlier rendering are written over; others stay.
    """
    paths = []
    for document in documents(fleet):
        path, _ = manifests.write(document, folder)
        paths.append(path)
    return check(paths)


def check(paths: Iterable[Path]) -> int:
    """Check what can be checked without a cluster: YAML, a kind and a name, no object twice, no filter too long.

    Returns how many objects there are.
    """
    seen: dict[tuple[str, ...], Path] = {}
    for path in paths:
        for document in _objects(path):
            identity = _identity(document, path)
            if identity in seen:
                raise BadManifestError(f"{path}: the same object as in {seen[identity]}: {' '.join(identity)}")
            seen[identity] = path
            _check_filter(document, path)
    return len(seen)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for document in yaml.safe_load_all(path.read_text()):
            if not isinstance(document, dict):
                raise BadManifestError(f"{path}: holds no object")
            yield document
    except yaml.YAMLError as error:
        raise BadManifestError(f"{path}: isn't YAML: {error}") from error


def _identity(document: dict[str, Any], path: Path) -> tuple[str, ...]:
    metadata = document.get("metadata") or {}
    group = str(document.get("apiVersion", "")).partition("/")[0]
    identity = (group, document.get("kind"), metadata.get("namespace", ""), metadata.get("name"))
    if not all(isinstance(part, str) for part in identity) or not (group and identity[1] and identity[3]):
        raise BadManifestError(f"{path}: an object needs apiVersion, kind and metadata.name")
    return tuple(map(str, identity))


def _check_filter(document: dict[str, Any], path: Path) -> None:
    text = (document.get("spec") or {}).get("filter", "")
    if document["kind"] == "PubSubSubscription" and len(text.encode()) > MAX_FILTER_BYTES:
        raise BadManifestError(
            f"{path}: its filter takes {len(text.encode())} bytes; Pub/Sub allows {MAX_FILTER_BYTES}"
        )

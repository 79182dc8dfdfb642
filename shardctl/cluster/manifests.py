"""The rendered documents as objects with names, and the difference of two renderings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shardctl.errors import UsageError
from shardctl.fleet.spec import Fleet
from shardctl.render import Document, documents
from shardctl.render.kinds import group_of, place_of

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadManifestError(UsageError):
    """A rendered document is no Kubernetes object, which only a template of the user's can cause."""


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """Which object: a version of its API doesn't make it another one. `namespace` is empty for what lies in none."""

    kind: str
    name: str
    namespace: str
    group: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    id: Name
    api_version: str
    body: Mapping[str, Any] = field(repr=False)


def manifests(fleet: Fleet, templates: Path | None = None) -> tuple[Manifest, ...]:
    """Everything that the file renders, in the order to apply it. Raises UsageError as `documents` does, BadManifestError."""
    rendered = [manifest_of(document) for document in documents(fleet, templates=templates)]
    return tuple(sorted(rendered, key=lambda manifest: place_of(manifest.id.kind)))


def manifest_of(document: Document) -> Manifest:
    """Raises BadManifestError."""
    try:
        body = yaml.load(document.text, _LOADER)  # noqa: S506 - one of the safe ones
        metadata = body["metadata"]
        name = name_of(body["apiVersion"], body["kind"], metadata)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadManifestError(
            f"the template of {document.kind} {document.name} renders no Kubernetes object with apiVersion, kind and "
            f"metadata.name ({type(error).__name__}). Look at it: `shardctl render --kind {document.kind}`."
        ) from error
    return Manifest(name, body["apiVersion"], body)


def name_of(api_version: str, kind: str, metadata: Mapping[str, Any]) -> Name:
    return Name(kind, metadata["name"], metadata.get("namespace", ""), group_of(api_version))


def no_longer_rendered(before: Fleet, after: Fleet) -> tuple[Name, ...]:
    """What the first file renders and the second doesn't, in the order to delete it: what uses others comes first."""
    kept = {manifest.id for manifest in manifests(after)}
    return in_order_of_deletion(manifest.id for manifest in manifests(before) if manifest.id not in kept)


def in_order_of_deletion(names: Iterable[Name]) -> tuple[Name, ...]:
    return tuple(sorted(sorted(names), key=lambda name: place_of(name.kind), reverse=True))


def delete_command(names: Iterable[Name]) -> str:
    """What deletes them by hand, in their order; all in one namespace."""
    names = tuple(names)
    kinds = (f"{name.kind.lower()}{'.' * bool(name.group)}{name.group}/{name.name}" for name in names)
    return f"kubectl delete -n {names[0].namespace} {' '.join(kinds)}"

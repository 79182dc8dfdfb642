"""`kustomization.yaml` of a folder of manifests: as a base, or as a component that overlays include."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shardctl import atomicfile
from shardctl.errors import ShardctlError
from shardctl.render.check import KUSTOMIZE

Kind = Literal["Kustomization", "Component"]
_VERSIONS: dict[Kind, str] = {"Kustomization": "v1beta1", "Component": "v1alpha1"}
_HEAD = "# Written by `shardctl render --kustomize`. Edit an overlay instead.\n"


def text(folder: Path, files: Sequence[Path], kind: Kind) -> str:
    """The files in their order, by their places in the folder."""
    lines = [f"apiVersion: kustomize.config.k8s.io/{_VERSIONS[kind]}", f"kind: {kind}", "resources:"]
    return _HEAD + "\n".join([*lines, *(f"  - {path.relative_to(folder).as_posix()}" for path in files)]) + "\n"


def write(folder: Path, files: Sequence[Path], kind: Kind) -> None:
    """Raises ShardctlError where a file of the user's would be overwritten."""
    path = folder / KUSTOMIZE
    if path.exists() and kind_of(folder) is None:
        raise ShardctlError(f"{path} is yours, and isn't overwritten. Move it to an overlay, or leave out --kustomize.")
    atomicfile.write(path, text(folder, files, kind).encode())


def kind_of(folder: Path) -> Kind | None:
    """Of the file that an earlier render wrote; None where there is none, or one of the user's."""
    path = folder / KUSTOMIZE
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    if not content.startswith(_HEAD):
        return None
    return "Component" if "\nkind: Component\n" in content else "Kustomization"

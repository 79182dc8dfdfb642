"""Rendered objects as files of a folder, and nothing outside it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from shardctl import atomicfile
from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.render import Document

Change = Literal["create", "update", "identical"]


class OutsideError(ShardctlError):
    """The file would not lie inside the folder."""


def write(document: Document, folder: Path) -> tuple[Path, Change]:
    """Write the document's file unless it holds the same bytes already; where it lies, and what was done.

    The folder itself may be a link; below it a link would lead the write to another place, and is refused. Raises ShardctlError.
    """
    path = _inside(folder, document.path)
    content = document.text.encode()
    try:
        before = path.read_bytes() if path.exists() else None
        if before == content:
            return path, "identical"
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomicfile.FileError(path, error.strerror or str(error)) from error
    atomicfile.write(path, content)
    return path, "create" if before is None else "update"


def is_of(fleet: Fleet, path: Path) -> bool:
    """Whether a file holds one object that was rendered for this fleet, by its labels."""
    try:
        body: Any = yaml.safe_load(path.read_bytes())
        labels = body["metadata"]["labels"]
        return (labels["app.kubernetes.io/part-of"], labels["app.kubernetes.io/managed-by"]) == (
            fleet.fleet,
            "shardctl",
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False


def _inside(folder: Path, relative: str) -> Path:
    """Raises OutsideError."""
    parts = PurePosixPath(relative).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise OutsideError(f"{relative!r} doesn't lie inside {folder}, so it isn't written.")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise OutsideError(
                f"{path} is a symbolic link, so it isn't written through: only files inside {folder} are. Delete the link, or "
                "render into another folder."
            )
    return path

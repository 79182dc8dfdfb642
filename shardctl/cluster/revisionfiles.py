"""Revisions among a Job's files: a ConfigMap's keys are names without folders. Pure."""

from __future__ import annotations

from pathlib import Path

from shardctl.migrate.history import FOLDER

_MARK = f"{FOLDER}.."  # `migrations/x.py` is `migrations..x.py`


def key_of(path: Path, file: Path) -> str:
    """The key of a file beside the fleet's `file`, or of a revision in the folder there."""
    return path.name if path.parent == file.parent else f"{_MARK}{path.name}"


def path_of(key: str, folder: Path) -> Path:
    """Where the text of a key belongs below `folder`."""
    return folder / FOLDER / key.removeprefix(_MARK) if key.startswith(_MARK) else folder / key

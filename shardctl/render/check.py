"""Compares what would be rendered with the files of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Literal

from shardctl.errors import ShardctlError
from shardctl.render import Document

KUSTOMIZE = "kustomization.yaml"  # the only other file that belongs in a folder of manifests


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that differs from what would be rendered; `diff` leads from the file to the rendered text."""

    what: Literal["differs", "missing", "unknown"]
    path: Path
    diff: tuple[str, ...] = ()

    def __str__(self) -> str:
        return {
            "differs": f"differs {self.path}",
            "missing": f"missing {self.path}",
            "unknown": f"unknown {self.path}: not part of this fleet; delete it if an earlier render wrote it",
        }[self.what]


def differences(documents: Iterable[Document], folder: Path, *, everything: bool) -> Iterator[Difference]:
    """In the order of `documents`; then, when they are `everything` there is, the files that none of them would write.

    Raises ShardctlError for a folder or a file that can't be read.
    """
    if not folder.is_dir():
        raise ShardctlError(f"{folder}: no such folder. `shardctl render -o {folder}` makes it.")
    known = set()
    for document in documents:
        path = folder / document.path
        known.add(path)
        before = _text(path)
        if before is None:
            yield Difference("missing", path)
        elif before != document.text:
            lines = (before.splitlines(), document.text.splitlines(), str(path), f"{path} (rendered)")
            yield Difference("differs", path, tuple(unified_diff(*lines, lineterm="")) or ("(line endings alone)",))
    if everything:
        yield from (Difference("unknown", path) for path in unknown(folder, known))


def unknown(folder: Path, known: Iterable[Path]) -> list[Path]:
    """The manifests below `folder` that aren't among the known ones."""
    rendered = set(known)
    return [path for path in sorted(folder.rglob("*.yaml")) if path not in rendered and path.name != KUSTOMIZE]


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardctlError(f"{path}: can't be read: {error.strerror}.") from error

"""The manifests of a stage as files, for a cluster to which Argo CD or Flux applies what is merged."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from shardctl.cli.terminal import say


def write_manifests(file: Path, folder: Path) -> bool:
    """Make the folder what the file renders; whether that changed it. Deletes its files that are no longer rendered."""
    from shardctl.fleet.load import load_fleet
    from shardctl.render import documents, kustomize, manifests
    from shardctl.render.check import unknown

    fleet = load_fleet(file)
    known, changed = [], False
    for document in documents(fleet):
        path, change = manifests.write(document, folder)
        known.append(path)
        if change != "identical":
            changed = True
            say(f"{change} {path}")
    for path in unknown(folder, known):
        if manifests.is_of(fleet, path):
            path.unlink()
            changed = True
            say(f"delete {path}")
        else:
            say(f"unknown {path}: not part of this fleet, left as it is")
    if (kind := kustomize.kind_of(folder)) is not None:
        kustomize.write(folder, known, kind)
    return changed


def say_merge_is_due(file: Path, folder: Path) -> None:
    from shardctl import lockfile

    paths = " ".join(quote(str(path)) for path in (folder, file, lockfile.path_of(file)))
    say(
        f"Commit and merge: `git add --all {paths}`. This stops here, and goes on when it is run again and the consumers report "
        "that the merge was applied."
    )

"""The fleet's files on the way to a Job and back: what its command changes in the cluster is changed here too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from shardctl import atomicfile, lockfile
from shardctl.cli.rebalance.proposal import next_of
from shardctl.cli.rebalance.start import before_of
from shardctl.cli.terminal import say
from shardctl.cluster import incluster, revisionfiles
from shardctl.cluster.api import Api
from shardctl.errors import UsageError
from shardctl.fleet import operators
from shardctl.fleet.spec import Fleet
from shardctl.migrate.history import folder_of
from shardctl.render.jobs import digest_of

MAX_BYTES = 900_000  # a ConfigMap holds 1 MiB, names and labels included


def read(file: Path) -> dict[str, str]:
    """The texts that a command reads, by name, the fleet's own file first. Raises UsageError."""
    paths = [path for path in (*_paths(file), *_revisions(file)) if path.exists()]
    try:
        texts = {revisionfiles.key_of(path, file): path.read_text(encoding="utf-8") for path in paths}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: can't be read: {error}.") from error
    if bad := [name for name in texts if not re.fullmatch(r"[-._A-Za-z0-9]{1,253}", name)]:
        raise UsageError(f"{bad[0]}: a Job's files have names of letters, digits, '-', '_' and '.'. Rename the file.")
    if (size := sum(len(text.encode()) for text in texts.values())) > MAX_BYTES:
        raise UsageError(f"{', '.join(texts)}: {size:,} bytes, and a Job is given at most {MAX_BYTES:,}.")
    return texts


def take_over(api: Api, fleet: Fleet, file: Path) -> bool:
    """Write here what the last Job changed; whether it changed anything. Safe to run again, after a kill anywhere.

    Raises KeptError where the files here aren't those that the Job was given, so that one of the two would be lost.
    """
    name = operators.name_of(fleet)
    kept = incluster.read_files(api, fleet.namespace, name)
    if not kept.changed:
        return False
    new = [path for key in kept.files if (path := revisionfiles.path_of(key, file.parent)).parent != file.parent]
    paths = {revisionfiles.key_of(path, file): path for path in (*_paths(file), *_revisions(file), *new)}
    theirs = {name: kept.files.get(name) for name in paths}
    ours = {name: path.read_text(encoding="utf-8") if path.exists() else None for name, path in paths.items()}
    if strange := [
        name for name in theirs if ours[name] not in (theirs[name], None) and not _is_sent(kept, name, ours)
    ]:
        raise incluster.KeptError(
            f"a Job has changed the fleet's files, and {', '.join(strange)} beside {file} isn't what the Job was given. Look at "
            f"the Job's: `kubectl get configmap {name} -n {fleet.namespace} -o yaml`. Put the files here as you want them, and "
            f"drop the Job's: `kubectl annotate configmap {name} -n {fleet.namespace} --overwrite "
            f"shardctl/sent={quote(digest_of(kept.files))}`."
        )
    # The fleet's own file last: a run that is killed before leaves it as the Job was given it.
    for key, path in reversed(paths.items()):
        _put(path, ours[key], theirs[key])
    incluster.write_files(api, fleet.namespace, name, kept.files, digest_of(kept.files))
    return True


def _paths(file: Path) -> tuple[Path, ...]:
    return file, lockfile.path_of(file), next_of(file), before_of(file)


def _revisions(file: Path) -> list[Path]:
    """Those that lie beside the file, for commands that change schemas, and for new shards."""
    return sorted(folder_of(file).glob("*.py"))


def _is_sent(kept: incluster.Kept, name: str, ours: Mapping[str, str | None]) -> bool:
    """Whether the file here is what the Job was given."""
    text = ours[name]
    sent = json.loads(kept.sent or "{}")
    return text is not None and sent.get(name) == json.loads(digest_of({name: text}))[name]


def _put(path: Path, ours: str | None, theirs: str | None) -> None:
    if theirs is None and ours is not None:
        path.unlink(missing_ok=True)
        say(f"{path}: deleted, as the Job did")
    elif theirs is not None and theirs != ours:
        path.parent.mkdir(exist_ok=True)
        atomicfile.write(path, theirs.encode())
        say(f"{path}: as the Job left it")

"""`shardctl render`: manifests to stdout, or one file an object."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, ShardctlError

if TYPE_CHECKING:
    from shardctl.render import Document


def render(
    file: FileOption = DEFAULT_FILE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write one file an object into this folder.")
    ] = None,
    shard: Annotated[
        list[str] | None, typer.Option("--shard", metavar="S", help="Only this shard's objects; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="K", help="Only objects of this kind; may be repeated.")
    ] = None,
) -> int:
    """Print the fleet's Kubernetes manifests, ready for `kubectl apply -f -`."""
    from shardctl import guard
    from shardctl.render import documents, warnings
    from shardctl.spec import load

    fleet = load(file)
    guard.check(file, fleet)
    found = documents(fleet, shards=shard or (), kinds=kind or ())
    for warning in warnings(fleet):
        say(f"warning: {warning}")
    if output is None:
        return _print(found)
    return _write(found, output, everything=not (shard or kind))


def _print(found: Iterable[Document]) -> int:
    out = sys.stdout.buffer
    try:
        for document in found:
            out.write(b"---\n" + document.text.encode())
        out.flush()
    except BrokenPipeError:
        # The reader has had enough, as in `| head`. Python flushes again at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise ShardctlError(f"stdout: can't be written: {error.strerror}. What was printed is incomplete.") from error
    return EXIT_DONE


def _write(found: Iterable[Document], folder: Path, *, everything: bool) -> int:
    """Write the files whose bytes differ. Deletes nothing: a file left over from an earlier render is only named."""
    known = set()
    for document in found:
        path, content = folder / document.path, document.text.encode()
        known.add(path)
        try:
            before = path.read_bytes() if path.exists() else None
            if before != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except OSError as error:
            raise ShardctlError(f"{path}: can't be written: {error.strerror}. Files named above are done.") from error
        say(f"{'create' if before is None else 'identical' if before == content else 'update'} {path}")
    if everything:
        for path in sorted(folder.rglob("*.yaml")):
            if path not in known:
                say(f"unknown {path}: not part of this fleet, left as it is; delete it if an earlier render wrote it")
    return EXIT_DONE

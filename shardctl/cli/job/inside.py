"""What a Job's container runs: the command on a copy of the fleet's files, which are kept outside the pod where it changes them.

    python -m shardctl.cli.job.inside --files /etc/shardctl --into /fleet [--keep-in CONFIGMAP] -- COMMAND…

Kubernetes joins stdout and stderr into one log. So each line of stdout begins with a mark, by which `shardctl job --follow` parts
them again. Exits as the command does.
"""

from __future__ import annotations

import io
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

from shardctl import atomicfile
from shardctl.cli import main
from shardctl.cli.job.marks import STDOUT_MARK
from shardctl.cli.rebalance.rollout import IN_JOB
from shardctl.cli.terminal import say
from shardctl.cluster import incluster, revisionfiles
from shardctl.cluster.api import UnreachableError
from shardctl.errors import EXIT_REFUSED, ShardctlError
from shardctl.migrate.history import FOLDER

TRIES, PAUSE_SECONDS = 6, 5.0  # an API server that restarts is no reason to stop


class MarkedStdout(io.TextIOBase):
    """Writes each line with the mark before it. It has no file descriptor, so nothing is written past it."""

    def __init__(self, raw: TextIO) -> None:
        self._raw, self._begins = raw, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._raw.write(STDOUT_MARK + line if self._begins else line)
            self._begins = line.endswith("\n")
        self._raw.flush()  # the log is followed
        return len(text)

    def flush(self) -> None:
        self._raw.flush()


def run(arguments: list[str]) -> int:
    options = _options().parse_args(arguments)
    os.chdir(options.into)
    os.environ[IN_JOB] = "1"
    try:
        if options.keep_in is None:
            _write(options.into, _read(options.files))
            return _command(options.command)
        with incluster.connected(os.environ, options.account) as (api, namespace):
            kept = incluster.read_files(api, namespace, options.keep_in)
            _write(options.into, kept.files)

            def keep() -> None:
                _patiently(
                    lambda: incluster.write_files(api, namespace, options.keep_in, _read(options.into), kept.sent)
                )

            with atomicfile.followed_by(keep):
                code = _command(options.command)
            keep()  # what was deleted since the last write
            return code
    except ShardctlError as error:
        say(f"error: {error}")
        return EXIT_REFUSED


def _options() -> ArgumentParser:
    options = ArgumentParser(prog="python -m shardctl.cli.job.inside")
    options.add_argument("--files", type=Path, required=True, help="where the ConfigMap is mounted")
    options.add_argument("--into", type=Path, required=True, help="the folder that the command works in")
    options.add_argument("--keep-in", help="the ConfigMap to read the files from, and to keep each change in")
    options.add_argument("--account", type=Path, default=incluster.ACCOUNT, help="where the pod's account is mounted")
    options.add_argument("command", nargs="+")
    return options


def _command(arguments: list[str]) -> int:
    with redirect_stdout(MarkedStdout(sys.stdout)):
        return main(arguments)


def _read(folder: Path) -> dict[str, str]:
    """The files of a folder; a ConfigMap's mount has links and folders of its own beside them."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    revisions = sorted((folder / FOLDER).glob("*.py"))
    return {
        revisionfiles.key_of(path, folder / path.name): path.read_text(encoding="utf-8")
        for path in (*files, *revisions)
    }


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = revisionfiles.path_of(name, folder)
        path.parent.mkdir(exist_ok=True)
        atomicfile.write(path, text.encode())


def _patiently(call: Callable[[], None]) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            call()
        except UnreachableError as error:
            if not tries_left:
                raise
            say(f"the files aren't kept yet: {error}")
            time.sleep(PAUSE_SECONDS)
        else:
            return


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

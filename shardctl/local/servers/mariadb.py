"""MariaDB, where it is installed: no wheel carries it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from shardctl.local.servers.process import HOST, BinaryMissingError, Server, ServerError

BINARY_VARIABLE = "SHARDCTL_MARIADB_BIN"
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec")  # often not on a user's PATH


class MariaDBServer(Server):
    """One empty server with durable commits; its administrator `root` needs no password on loopback."""

    program = "mariadbd"

    def url(self, database: str) -> str:
        return f"mysql+pymysql://root@{HOST}:{self.port}/{database}?charset=utf8mb4"

    def create_database(self, name: str) -> str:
        """Make a database where it is missing; its URL."""
        self._execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS `{name}`")

    @property
    def _datadir(self) -> Path:
        return self.data_dir / "data"

    def _prepare(self) -> None:
        if (self._datadir / "mysql").is_dir():
            return
        install = find_program("mariadb-install-db")
        command = [
            str(install),
            "--no-defaults",
            f"--datadir={self._datadir}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *_as_ourselves(),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise ServerError(
                f"{install} made no cluster in {self._datadir}:\n{made.stdout[-2000:]}{made.stderr[-2000:]}"
            )

    def _command(self) -> list[str]:
        return [
            str(find_program("mariadbd")),
            "--no-defaults",
            f"--datadir={self._datadir}",
            f"--bind-address={HOST}",
            f"--port={self.port}",
            f"--socket={self.data_dir / 'socket'}",
            f"--pid-file={self.data_dir / 'pid'}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=128M",
            "--max-allowed-packet=256M",
            *_as_ourselves(),
        ]

    def _ping(self) -> bool:
        import pymysql

        try:
            connection = pymysql.connect(host=HOST, port=self.port, user="root", connect_timeout=1)
        except pymysql.err.Error:
            return False
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@datadir")
            found = cursor.fetchone()
        return bool(found) and Path(found[0]) == self._datadir

    def _execute(self, statement: str) -> None:
        import pymysql

        with (
            pymysql.connect(host=HOST, port=self.port, user="root", autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)


def find_program(name: str) -> Path:
    """The variable's folder, else the PATH, else where systems keep their servers."""
    folder = os.environ.get(BINARY_VARIABLE)
    found = shutil.which(name, path=folder or os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))
    if found is None:
        raise BinaryMissingError(name, f"install Debian's mariadb-server, or set {BINARY_VARIABLE} to its folder")
    return Path(found)


def _as_ourselves() -> list[str]:
    """MariaDB runs as root only when told to; on loopback, for a test, that is all right."""
    return ["--user=root"] if os.geteuid() == 0 else []

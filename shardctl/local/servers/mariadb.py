"""MariaDB, where it is installed: no wheel carries it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardctl import atomicfile
from shardctl.local.servers.process import HOST, BinaryMissingError, Server, ServerError

if TYPE_CHECKING:
    import pymysql

BINARY_VARIABLE = "SHARDCTL_MARIADB_BIN"
_SETTINGS = {"innodb-buffer-pool-size": "128M", "max-allowed-packet": "256M"}
_NOT_DURABLE = {"innodb-flush-log-at-trx-commit": "0", "innodb-doublewrite": "OFF"}
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec")  # often not on a user's PATH


class MariaDBServer(Server):
    """One server, empty at first. Its administrator `root` has a random password, which is this object's alone.

    `durable=False` gives up what survives a crash of the *machine*, for speed. `settings` are the server's options, and win
    over ours.
    """

    program = "mariadbd"

    def __init__(
        self, data_dir: Path, port: int = 0, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data_dir, port)
        self._password = secrets.token_hex(16)
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}

    def url(self, database: str) -> str:
        return f"mysql+pymysql://root:{self._password}@{HOST}:{self.port}/{database}?charset=utf8mb4"

    def create_database(self, name: str) -> str:
        """Make a database where it is missing; its URL."""
        self._execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Nothing happens where there is no such database."""
        self._execute(f"DROP DATABASE IF EXISTS `{name}`")

    def delete(self) -> None:
        """Kills the server and deletes its data and its log."""
        self.kill()
        for folder in (self._datadir, self._tmpdir):
            shutil.rmtree(folder, ignore_errors=True)
        self.log_file.unlink(missing_ok=True)
        self._init_file.unlink(missing_ok=True)

    @property
    def _datadir(self) -> Path:
        return self.data_dir / "data"

    @property
    def _tmpdir(self) -> Path:
        """Its own: a server that starts deletes the temporary tables it finds there, another running server's too."""
        return self.data_dir / "tmp"

    @property
    def _init_file(self) -> Path:
        """What the server executes before it takes connections."""
        return self.data_dir / "init.sql"

    def _prepare(self) -> None:
        self._tmpdir.mkdir(exist_ok=True)
        if not self._datadir.exists():
            self._make_datadir()
        user = f"root@'{HOST}'"
        statements = (
            "DELETE FROM mysql.global_priv",  # the installation's, whom every user of the machine may be
            "FLUSH PRIVILEGES",
            f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{self._password}'",
            f"GRANT ALL ON *.* TO {user} WITH GRANT OPTION",
        )
        atomicfile.write(self._init_file, "".join(f"{statement};\n" for statement in statements).encode(), private=True)

    def _make_datadir(self) -> None:
        """Whole or not at all: a start cut short leaves nothing that looks like a cluster."""
        draft = self._datadir.with_name("data.new")
        shutil.rmtree(draft, ignore_errors=True)
        install = find_program("mariadb-install-db")
        with tempfile.TemporaryDirectory(
            prefix="shardctl-mariadb-"
        ) as folder:  # the script can't take a path with a blank
            command = [
                str(install),
                "--no-defaults",
                f"--datadir={folder}/data",
                f"--tmpdir={folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *_as_ourselves(),
            ]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise ServerError(f"{install} made no cluster:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
            shutil.move(f"{folder}/data", draft)
        draft.rename(self._datadir)

    def _command(self) -> list[str]:
        return [
            str(find_program("mariadbd")),
            "--no-defaults",
            f"--datadir={self._datadir}",
            f"--tmpdir={self._tmpdir}",
            f"--bind-address={HOST}",
            f"--port={self.port}",
            "--socket=socket",  # in the data folder: a socket's path may be 107 bytes long, a checkout's is often longer
            "--pid-file=pid",
            f"--init-file={self._init_file}",
            "--skip-name-resolve",
            *(f"--{name}={value}" for name, value in self._settings.items()),
            *_as_ourselves(),
        ]

    def _ping(self) -> bool:
        import pymysql

        try:
            connection = self._connect(connect_timeout=1)
        except pymysql.err.Error:
            return False
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@datadir")
            row = cursor.fetchone()
        return row is not None and Path(row[0]) == self._datadir

    def _execute(self, statement: str) -> None:
        with self._connect(autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def _connect(self, **options: Any) -> pymysql.Connection[pymysql.cursors.Cursor]:
        import pymysql

        return pymysql.connect(host=HOST, port=self.port, user="root", password=self._password, **options)


def find_program(name: str) -> Path:
    """The variable's folder, else the PATH, else where systems keep their servers."""
    folder = os.environ.get(BINARY_VARIABLE)
    path = shutil.which(name, path=folder or os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))
    if path is None:
        raise BinaryMissingError(name, f"install Debian's mariadb-server, or set {BINARY_VARIABLE} to its folder")
    return Path(path)


def _as_ourselves() -> list[str]:
    """MariaDB runs as root only with an option; on loopback, for a test, that is acceptable."""
    return ["--user=root"] if os.geteuid() == 0 else []

"""PostgreSQL on loopback, with streaming replicas to fail over to."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from typing import Literal as OneOf

from shardctl import atomicfile
from shardctl.local.servers.account import temporary_folder
from shardctl.local.servers.install import PASSWORD, SUPERUSER, Installation, find_installation
from shardctl.local.servers.process import HOST, BinaryMissingError, Server, ServerError, StartError, wait_until

if TYPE_CHECKING:  # a fleet on SQLite runs without the driver
    import psycopg

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path may be 107 bytes long, a checkout's is often longer
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "wal_keep_size": "256MB",  # what a paused replica may fall behind; a slot would keep all for a replica that is gone
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


class PostgresServer(Server):
    """Its cluster lies in `data_dir/pgdata`, made at the first start and kept by later ones.

    Every user of the machine may try to connect, and the superuser may run programs. So it has a random password, kept beside
    the cluster in the file `password` for our user alone.

    `durable=False` gives up what survives a crash of the *machine*, for speed. `settings` are postgresql.conf's and
    win over ours. Run by root, the server works under another account; where that one can't reach `data_dir`,
    `pgdata` is a link into the system's temporary folder. Raises BinaryMissingError without the driver.
    """

    program = "postgres"
    # Immediate shutdown, not SIGKILL: the postmaster takes its children along, those deep in a query too.
    last_signal = signal.SIGQUIT
    _stop_signals: ClassVar[Mapping[str, signal.Signals]] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(
        self, data_dir: Path, port: int = 0, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data_dir, port)
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise BinaryMissingError("psycopg", "pip install 'shardctl[local]'") from error
        self._settings = {**_SETTINGS, **(_DURABLE if durable else _NOT_DURABLE), **(settings or {})}

    @property
    def pgdata(self) -> Path:
        return (self.data_dir / "pgdata").resolve()

    @property
    def password(self) -> str:
        """Of the superuser."""
        try:
            return self._password_file.read_text()
        except FileNotFoundError:
            return PASSWORD  # of the cluster that the first start makes

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy, with the password."""
        return f"postgresql+psycopg://{SUPERUSER}:{self.password}@{HOST}:{self.port}/{database}"

    def stop(self, timeout_seconds: float = 30.0, *, mode: OneOf["fast", "immediate"] = "fast") -> None:
        """Mode fast ends sessions and writes a checkpoint; immediate leaves recovery to the next start."""
        self._stop_by(self._stop_signals[mode], timeout_seconds)

    def create_database(self, name: str, schemas: Sequence[str] = ()) -> str:
        """Makes the database and its schemas unless they are there; returns its URL."""
        from psycopg.errors import DuplicateDatabase
        from psycopg.sql import SQL, Identifier

        with self._connect() as connection, contextlib.suppress(DuplicateDatabase):
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        if schemas:
            with self._connect(database=name) as connection:
                for schema in schemas:
                    connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(schema)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Ends the sessions that use it. Nothing happens where there is no such database."""
        from psycopg.sql import SQL, Identifier

        with self._connect() as connection:
            connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def replica(self, data_dir: Path, port: int = 0, *, synchronous: bool = False) -> PostgresServer:
        """A started copy that follows this server's every commit.

        With `synchronous`, a commit returns once the replica has it on disk, so that promoting it loses nothing; and
        no commit returns while the replica is gone. Without it, the newest commits may be missing there.
        """
        from psycopg.sql import SQL, Literal

        standby = PostgresServer(data_dir, port, settings=self._settings)
        name = f"replica_{standby.port}"
        source = f"host={HOST} port={self.port} user={SUPERUSER} application_name={name} sslmode=disable"
        password = self.password
        standby._make_pgdata(lambda folder: self._installation.base_backup(source, password, folder), password)
        standby.start()
        with self._connect() as connection:
            if synchronous:
                connection.execute(SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(Literal(name)))
                connection.execute("SELECT pg_reload_conf()")
            wanted = "sync" if synchronous else "async"
            query = (
                "SELECT FROM pg_stat_replication WHERE (application_name, state, sync_state) = (%s, 'streaming', %s)"
            )
            if not wait_until(lambda: connection.execute(query, (name, wanted)).rowcount == 1, timeout_seconds=30):
                raise StartError(standby, "does not stream from its primary", standby.log_tail())
        return standby

    def promote(self, timeout_seconds: int = 30) -> None:
        """The replica takes writes from now on. End its primary first: nothing here keeps that one from writing."""
        with self._connect() as connection:
            done = connection.execute("SELECT pg_promote(true, %s)", (timeout_seconds,)).fetchone()
        if done != (True,):
            raise StartError(self, f"was not promoted within {timeout_seconds} s", self.log_tail())

    def delete(self) -> None:
        """Kills the server and deletes its data and its log."""
        self.kill()
        for name in ("pgdata", "pgdata.new"):
            _remove(self.data_dir / name)
        self.log_file.unlink(missing_ok=True)
        self._password_file.unlink(missing_ok=True)

    def _prepare(self) -> None:
        if not (self.data_dir / "pgdata").exists():
            self._make_pgdata(self._installation.create_cluster, PASSWORD)
        elif not self._password_file.exists():
            raise ServerError(
                f"{self.data_dir} holds no file `password`: its cluster is an earlier release's. Delete it"
            )

    def _command(self) -> list[str]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        program = str(self._installation.bin_dir / "postgres")
        return self._installation.command(program, "-D", str(self.pgdata), f"--port={self.port}", *settings)

    def _spawn_options(self) -> dict[str, Any]:
        return self._installation.spawn_options()

    def _ping(self) -> bool:
        try:
            with self._connect(timeout_seconds=2) as connection:
                return connection.execute("SHOW data_directory").fetchone() == (str(self.pgdata),)
        except ServerError:
            return False

    @functools.cached_property
    def _installation(self) -> Installation:
        return find_installation()

    def _connect(self, timeout_seconds: int = 10, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        try:
            return psycopg.connect(
                host=HOST,
                port=self.port,
                user=SUPERUSER,
                password=self.password,
                dbname=database,
                sslmode="disable",
                connect_timeout=timeout_seconds,
                autocommit=True,
            )
        except psycopg.OperationalError as fault:
            raise ServerError(f"postgres at {HOST}:{self.port} takes no connection: {fault}") from fault

    @property
    def _password_file(self) -> Path:
        return self.data_dir / "password"

    def _make_pgdata(self, fill: Callable[[Path], None], password: str) -> None:
        """A new `pgdata`, whole or not at all: a start cut short leaves nothing that looks like a cluster."""
        final, draft = self.data_dir / "pgdata", self.data_dir / "pgdata.new"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        _remove(final)  # a link whose target a cleaner of temporary files has taken
        _remove(draft)
        account = self._installation.account
        if account is None or account.reaches(self.data_dir):
            draft.mkdir(mode=0o700)
            if account is not None:
                os.chown(draft, account.uid, account.gid)
        else:
            draft.symlink_to(temporary_folder(account, "shardctl-postgres-data-"))
        fill(draft.resolve())
        atomicfile.write(self._password_file, password.encode(), private=True)
        draft.rename(final)


def _remove(folder: Path) -> None:
    """Deletes the folder, or the link and what it points to."""
    if folder.exists():
        shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()

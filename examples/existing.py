"""A database whose tables exist becomes a fleet's: the file is drafted from it, and its rows receive their slots.

python -m examples.existing
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from shardctl import InvalidWriteError, Reader, Write, load_fleet
from shardctl.cli import main as shardctl
from shardctl.fleet.spec import Fleet
from shardctl.provision import provision_database
from shardctl.shard import database
from shardctl.wire.message import encode

TABLES = """
CREATE TABLE invoices (
    id CHAR(36) PRIMARY KEY, customer VARCHAR(20) NOT NULL, due DATE, total NUMERIC(10,2), scan BLOB, hour TIME,
    version INTEGER NOT NULL
);
INSERT INTO invoices VALUES ('6f1c6b0a-0000-4000-8000-00000000000a', 'Ada', '2026-12-31', 12.5, x'00ff', NULL, 1);
"""
ID = "6f1c6b0a-0000-4000-8000-00000000000a"
INVOICE = {"id": ID, "customer": "Ada", "version": 2}
BODIES = (
    {"due": "2027-01-15", "total": "99.99", "scan": b"\x00\xff"},
    {"due": "2027-02-29"},
    {"total": "99.999"},
    {"customer": "A name of more than twenty characters"},
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url, file = f"sqlite:///{folder}/shop.db", f"{folder}/shards.yaml"
        with sqlite3.connect(f"{folder}/shop.db") as connection:
            connection.executescript(TABLES)
        connection.close()

        _run("init", "--from-database", url, "--fleet", "shop", "-f", file)
        fleet = load_fleet(Path(file))
        print(Path(file).read_text().partition("message_types:\n")[2].partition("\nsubscription:")[0])

        os.environ["SHARDCTL_DATABASE_URL_S0"] = url
        _run("adopt", "--yes", "-f", file)
        provision_database(fleet, fleet.shards[0], url)
        _read(fleet, url)
        for body in BODIES:
            try:
                print(
                    "written as", encode(fleet, Write("invoices", {**INVOICE, **body}), datetime.now(UTC)).data.decode()
                )
            except InvalidWriteError as error:
                print("refused:", error)


def _run(*arguments: str) -> None:
    if code := shardctl(list(arguments)):
        raise SystemExit(code)


def _read(fleet: Fleet, url: str) -> None:
    engine = database.connect(url)
    with Reader(fleet, {"s0": engine}).session(ID) as session:
        row = session.connection().exec_driver_sql("SELECT customer, slot FROM invoices").one()
        print(f"{row.customer}'s invoice has slot {row.slot}")
    engine.dispose()


if __name__ == "__main__":
    main()

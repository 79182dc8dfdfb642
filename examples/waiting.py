"""An order is published, and read once its write has taken effect.

Against the fleet that `shardctl up` runs on this machine:

    . build/env
    python -m examples.waiting shards.yaml
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardctl import Fleet, Publisher, Reader, Write, load_fleet
from shardctl.fleet.topology import database_url_variable


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String)


def main(file: Path) -> None:
    fleet = load_fleet(file)
    databases = _engines(fleet)
    with Publisher(fleet, databases=databases) as publisher:
        sent = publisher.publish(Write("order", {"order_id": "o-1001", "status": "paid", "revision": 1}))
        effect = sent.applied(timedelta(seconds=10))
    if effect:
        print("applied; the order is", Reader(fleet, databases).get(Order, "o-1001").status)
    else:
        print("not applied:", effect.state, effect.reason)
    for engine in databases.values():
        engine.dispose()


def _engines(fleet: Fleet) -> dict[str, Engine]:
    """As the environment names the shards' databases, with the driver that this project ships."""
    urls = {shard.name: os.environ[database_url_variable(shard)] for shard in fleet.shards}
    return {name: create_engine(url.replace("postgresql://", "postgresql+psycopg://")) for name, url in urls.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Orders that are written and published in one transaction, from a SQLite database and with a broker that it starts itself.

python -m examples.outbox
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from shardctl import Fleet, Outbox, Write, load_fleet
from shardctl.cli.provision import pubsub_clients
from shardctl.local.processes import BrokerProcess
from shardctl.provision import provision_pubsub
from shardctl.relay.process import VARIABLE, database_of, run_once

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, status: text}}
shards:
  - {name: s0, slots: 0-1023}
"""


class Base(DeclarativeBase):
    pass


class Cart(Base):
    """A table of the application's own."""

    __tablename__ = "carts"
    cart_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "shards.yaml").write_text(FILE)
        fleet = load_fleet(file)
        engine = create_engine(f"sqlite:///{folder}/application.db")
        outbox = Outbox(fleet)
        Base.metadata.create_all(engine)
        outbox.create(engine)

        with Session(engine) as session, session.begin():
            session.add(Cart(cart_id="c-1", status="bought"))
            outbox.enqueue(session, Write("order", {"order_id": "o-1", "status": "paid"}))
        with Session(engine) as session:
            session.add(Cart(cart_id="c-2", status="bought"))
            outbox.enqueue(session, Write("order", {"order_id": "o-2", "status": "paid"}))
            session.rollback()  # neither the cart nor the order

        broker = BrokerProcess(Path(folder) / "broker").start()
        os.environ |= {"PUBSUB_EMULATOR_HOST": broker.host, VARIABLE: str(engine.url)}
        try:
            _relay(fleet)
        finally:
            broker.stop()
        with Session(engine) as session:
            print("carts:", session.scalar(select(func.count()).select_from(Cart)))
        engine.dispose()


def _relay(fleet: Fleet) -> None:
    """What `shardctl relay --once` does, and a look at what came of it."""
    with pubsub_clients(fleet) as (publisher, subscriber):
        provision_pubsub(fleet, publisher, subscriber)
        print("published:", run_once(fleet, database_of(os.environ), patience_seconds=60).published)
        path = "projects/my-project/subscriptions/orders-s0-g1"
        for received in subscriber.pull(subscription=path, max_messages=10, timeout=60).received_messages:
            print("the consumer gets:", received.message.data.decode())


if __name__ == "__main__":
    main()

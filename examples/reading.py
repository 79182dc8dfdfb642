"""Orders read by key and over all shards, from two SQLite databases that it makes in a temporary folder.

python -m examples.reading
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardctl import Fleet, Reader, load_fleet
from shardctl.provision import provision_database

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, amount: bigint}}
shards:
  - {name: s0, slots: 0-511}
  - {name: s1, slots: 512-1023}
"""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int]
    slot: Mapped[int]  # a read over all shards needs it


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "shards.yaml").write_text(FILE)
        fleet = load_fleet(file)
        databases = {shard.name: create_engine(f"sqlite:///{folder}/{shard.name}.db") for shard in fleet.shards}
        _fill(fleet, databases)
        reads = Reader(fleet, databases)

        order = reads.get(Order, "o-7")
        print(f"{order.order_id} has the amount {order.amount}")
        with reads.session("o-7") as session:
            print("amount of o-7:", session.scalar(select(Order.amount).where(Order.order_id == "o-7")))
        largest = reads.scatter(select(Order), order_by=[Order.amount.desc()], limit=3).scalars()
        print("largest:", ", ".join(order.order_id for order in largest))
        for engine in databases.values():
            engine.dispose()


def _fill(fleet: Fleet, databases: dict[str, Engine]) -> None:
    """What consumers would have written."""
    for shard in fleet.shards:
        provision_database(fleet, shard, str(databases[shard.name].url))
    for number in range(20):
        key = f"o-{number}"
        slot = fleet.routing.rule.slot_of(key)
        owner = next(shard.name for shard in fleet.shards if slot in shard.slots)
        with databases[owner].begin() as connection:
            connection.execute(insert(Order).values(order_id=key, amount=10 * number, slot=slot))


if __name__ == "__main__":
    main()

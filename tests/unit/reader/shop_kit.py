"""A fleet of two shards on SQLite with orders and their lines, and engines as an application has them."""

from sqlalchemy import ForeignKey, create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardctl.provision import provision_database
from shardctl.reader.reader import Reader

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, amount: bigint}}
  line: {table: lines, key: [order_id, number], columns: {order_id: text, number: bigint, item: text}}
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int | None]
    slot: Mapped[int]
    lines: Mapped[list["Line"]] = relationship(viewonly=True)


class Line(Base):
    __tablename__ = "lines"
    order_id: Mapped[str] = mapped_column(ForeignKey("orders.order_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    slot: Mapped[int]


class Shop:
    """`orders` by their keys: o-0 to o-19, each with an amount of its number and one line."""

    def __init__(self, fleet, folder):
        self.fleet = fleet
        self.engines = {shard.name: create_engine(f"sqlite:///{folder}/{shard.name}.db") for shard in fleet.shards}
        self.keys = [f"o-{number}" for number in range(20)]
        self.reader = Reader(self.fleet, self.engines)

    def provision(self):
        for shard in self.fleet.shards:
            provision_database(self.fleet, shard, str(self.engines[shard.name].url))
        for number, key in enumerate(self.keys):
            self.put(self.home(key), key, number)

    def slot(self, key):
        return self.fleet.routing.rule.slot_of(key)

    def home(self, key):
        return "s0" if self.slot(key) < 8 else "s1"

    def put(self, shard, key, amount):
        """As if a copy had brought it, or a move had left it behind, where `shard` isn't its home."""
        with self.engines[shard].begin() as connection:
            connection.execute(insert(Order).values(order_id=key, amount=amount, slot=self.slot(key)))
            connection.execute(insert(Line).values(order_id=key, number=1, item=f"i-{key}", slot=self.slot(key)))

    def lane(self, shard, slot, state):
        with self.engines[shard].begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM shardctl_lanes WHERE slot = {slot}")
            if state:
                connection.exec_driver_sql(
                    f"INSERT INTO shardctl_lanes (slot, generation, state) VALUES ({slot}, 1, '{state}')"
                )

    def close(self):
        for engine in self.engines.values():
            engine.dispose()

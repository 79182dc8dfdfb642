"""A sink of one's own with pessimistic locks: a stock that never goes below nothing.

    message_types:
      movement:
        sink: examples.inventory:Inventory
        routing_key: sku
        on_poison: park  # later movements of an item wait behind one that can't be

A movement is `{"sku": "bolt", "quantity": 5}`: more into the stock, or out of it with a quantity below zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    bindparam,
    select,
    update,
)

from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError
from consumer.sinks.base import json_object

stock = Table(
    "stock",
    MetaData(),
    Column("sku", String(100), primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    CheckConstraint("quantity >= 0", name="stock_never_negative"),  # the database has the last word
)

_SET = update(stock).where(stock.c.sku == bindparam("item")).values(quantity=bindparam("left"))


class Inventory:
    """Its own factory: called without arguments."""

    def check(self, delivery: Delivery) -> None:
        """What can be told from the message alone. A message that fails here never opens a transaction."""
        delivery.body = body = json_object(delivery)
        if body.get("sku") != delivery.partition_key:
            raise PermanentError(
                "bad_value", "the sku must be the routing key: that is what keeps an item's movements in order"
            )
        if type(body.get("quantity")) is not int:
            raise PermanentError("bad_value", f"the quantity must be a whole number, not {body.get('quantity')!r}")

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """All items of the batch are locked in one statement and in one order, so that nobody waits in a circle."""
        items = sorted({write.body["sku"] for write in writes})
        query = select(stock.c.sku, stock.c.quantity).where(stock.c.sku.in_(items)).order_by(stock.c.sku)
        left = {row.sku: row.quantity for row in connection.execute(query.with_for_update())}
        for write in writes:
            sku, quantity = write.body["sku"], write.body["quantity"]
            if sku not in left:
                raise DataFaultError("unknown_item", f"there is no {sku!r} in the stock")
            if left[sku] + quantity < 0:
                raise DataFaultError("out_of_stock", f"{-quantity} of {sku!r} are wanted, and {left[sku]} are there")
            left[sku] += quantity
        connection.execute(_SET, [{"item": sku, "left": quantity} for sku, quantity in left.items()])
        return 0

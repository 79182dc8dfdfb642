"""A sink of one's own with optimistic locks: balances that other programs change too, without waiting for each other.

    message_types:
      booking:
        sink: examples.accounts:Accounts
        routing_key: account

A booking is `{"account": "a-1", "amount": -5}`. Every change of an account raises its version. A writer that finds
another version than the one that was read has been overtaken: nothing was written, and it is tried again from the start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, select, update

from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError, TransientError
from consumer.sinks.base import json_object

accounts = Table(
    "accounts",
    MetaData(),
    Column("account", String(100), primary_key=True),
    Column("balance", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
)


class Accounts:
    """Its own factory: called without arguments."""

    def check(self, delivery: Delivery) -> None:
        delivery.body = body = json_object(delivery)
        if body.get("account") != delivery.partition_key or type(body.get("amount")) is not int:
            raise PermanentError("bad_value", "a booking has an account, which is the routing key, and a whole amount")

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """One read for the batch, and one update for each account of it, in one order for all."""
        amounts: dict[str, int] = defaultdict(int)
        for write in writes:
            amounts[write.body["account"]] += write.body["amount"]
        query = select(accounts).where(accounts.c.account.in_(sorted(amounts)))
        rows = {row.account: row for row in connection.execute(query)}
        for account, amount in sorted(amounts.items()):
            if account not in rows:
                raise DataFaultError("unknown_account", f"there is no account {account!r}")
            row = rows[account]
            changed = connection.execute(
                update(accounts)
                .where(accounts.c.account == account, accounts.c.version == row.version)
                .values(balance=row.balance + amount, version=row.version + 1)
            )
            if changed.rowcount == 0:
                raise TransientError(f"account {account!r} was changed by somebody else meanwhile")
        return 0

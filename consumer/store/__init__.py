"""One batch, one transaction: the inbox, the lanes and the term that a write needs, and parked keys."""

from consumer.store.transaction import Store

__all__ = ["Store"]

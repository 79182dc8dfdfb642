"""Which connections a server keeps when it is full. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Tenant(Protocol):
    """A connection. `is_held_up` while it is the server that doesn't read."""

    @property
    def is_held_up(self) -> bool: ...
    def evict(self) -> None: ...


class Room:
    """When it is full, a newcomer takes the place of the connection that has sent nothing for the longest time, among those from
    which the server waits for something: idle ones, and those in the middle of a head or a body.

    So a client that holds connections open, or sends byte by byte, loses them to active clients; and a complete request is never
    lost to a newcomer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: set[Tenant] = set()
        self._awaited: OrderedDict[Tenant, None] = OrderedDict()  # the one that has been idle longest comes first

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, tenant: Tenant) -> bool:
        """False where there is no room, and no connection that it could replace."""
        if len(self._all) >= self._most:
            silent = next((other for other in self._awaited if not other.is_held_up), None)
            if silent is None:
                return False
            self.leave(silent)
            silent.evict()
        self._all.add(tenant)
        self._awaited[tenant] = None
        return True

    def leave(self, tenant: Tenant) -> None:
        """It may have left already."""
        self._all.discard(tenant)
        self._awaited.pop(tenant, None)

    def heard(self, tenant: Tenant) -> None:
        """It sent something."""
        if tenant in self._awaited:
            self._awaited.move_to_end(tenant)

    def settle(self, tenant: Tenant) -> None:
        """Its request is complete: the server must act next."""
        self._awaited.pop(tenant, None)

    def await_from(self, tenant: Tenant) -> None:
        """It has its answer: the client must act next."""
        if tenant in self._all:
            self._awaited[tenant] = None

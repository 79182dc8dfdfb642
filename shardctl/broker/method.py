"""A unary method of the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardctl.broker.protos import Proto


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method: the name of its request, and what it does. Its handler may return None for an Empty."""

    request: str
    handler: Callable[[Proto], Proto | None]

"""How much of a server's resources unauthenticated clients may use."""

from __future__ import annotations

import resource
from dataclasses import dataclass

SPARE_FILES = 256  # for everything else that the process opens


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one server.

    `head_bytes` is what a request's line and headers may take, and also what may come in a body without being a part of it:
    chunk extensions and trailers. `head_seconds` runs from the connection, or from a later request's first byte, to the end of
    its headers. `unread_seconds` is how long a client may fetch nothing of an answer that is too long for the buffers.
    """

    connections: int = 4_096
    head_bytes: int = 32 * 1024
    headers: int = 100
    head_seconds: float = 10.0
    keep_alive_seconds: int = 620  # longer than Google's load balancers keep a connection, so that they close it first
    unread_seconds: float = 60.0
    pipelined: int = 16  # requests that wait for the answer to an earlier one of their connection


def connections_within(wanted: int) -> int:
    """As many of the wanted connections as the process may open files for. Raises its soft limit where the hard one lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - SPARE_FILES))
    return wanted

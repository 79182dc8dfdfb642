"""Sockets to listen on."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from shardctl.errors import UsageError

BACKLOG = 1_024  # accepted at once; far fewer than a server has room for, or newcomers would replace each other

# Of IPv4 and IPv6: a pod may have only one of them, and the kubelet probes that one.
EVERY_ADDRESS = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def bind(host: str, port: int, what: str, fix: str) -> socket.socket:
    """A socket bound to the address; port 0 takes a free one, and `::` is every address, those of IPv4 too.

    It doesn't listen yet: nobody can connect, but a port in use is already reported. `what` names its traffic, and `fix`
    what to do where it can't be bound. Raises UsageError.
    """
    if not host:  # the socket library's name for every address
        raise UsageError(f"the address to listen on for {what} is empty. Give one: 127.0.0.1 is this machine alone.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"can't listen on {shown(host)}:{port} for {what}: {why}. {fix}") from error
    return bound


def shown(host: str) -> str:
    """A host as a URL writes it."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

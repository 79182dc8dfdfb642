"""Messages in publish requests that the service takes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

MAX_REQUEST_MESSAGES = 1_000
MAX_REQUEST_BYTES = 9_000_000  # of the 10 MB that the service takes; one message alone may be larger

Item = TypeVar("Item")


def in_requests(messages: Iterable[Item], bytes_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The messages in order, in as few requests as their bounds allow."""
    request: list[Item] = []
    size = 0
    for message in messages:
        bytes_more = bytes_of(message)
        if request and (len(request) == MAX_REQUEST_MESSAGES or size + bytes_more > MAX_REQUEST_BYTES):
            yield request
            request, size = [], 0
        request.append(message)
        size += bytes_more
    if request:
        yield request

"""Pages of a listing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.protos import Proto

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000


def page_of(names: Iterable[str], request: Proto) -> tuple[Sequence[str], str]:
    """One page in order of name and the token of the next: the last name shown, so pages survive changes."""
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    if size < 0:
        raise InvalidArgumentError("page_size must not be negative.")
    names = sorted(name for name in names if name > request.page_token)
    page = names[:size]
    return page, page[-1] if len(names) > size else ""

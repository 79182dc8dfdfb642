"""Times in requests. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


def time_of(text: str) -> datetime:
    """The moment that an RFC 3339 time names, in UTC. Raises ValueError."""
    if not _RFC_3339.fullmatch(text):
        raise ValueError(f"{text!r:.40} isn't an RFC 3339 time with Z or an offset, such as 2026-01-31T09:30:00Z")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r:.40} isn't a time: {error}") from error

"""An option of the form NAME=VALUE that may be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardctl.errors import UsageError


def read_pairs(option: str, texts: Sequence[str], wanted: str) -> Iterator[tuple[str, str]]:
    """Each name with its value, of which none is shown: it may be a secret. Raises UsageError, also for a name given twice."""
    seen = set()
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(f"{option} wants {wanted}.")
        if name in seen:
            raise UsageError(f"{option} is given twice for {name}. Give it once.")
        seen.add(name)
        yield name, value

"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 8


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

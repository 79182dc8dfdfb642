"""The name that was probably meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean X?` with the nearest of the known names, whatever its case; empty where none is near."""
    from difflib import get_close_matches

    names = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), names, 1)
    return f" Did you mean {names[close[0]]}?" if close else ""

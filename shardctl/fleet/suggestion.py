"""The name that was probably meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The nearest of the known names, whatever its case; None where none is near."""
    from difflib import get_close_matches

    names = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), names, 1)
    return names[close[0]] if close else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean X?`, or nothing where no known name is near."""
    near = nearest(word, known)
    return f" Did you mean {near}?" if near else ""

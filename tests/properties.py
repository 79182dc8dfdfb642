"""How many examples a property test tries: the same ones each time, so that a red build is red again.

`make check` tries a quarter of them (`--hypothesis-profile quick`), `make test` all.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

ALL, QUICK = "all", "quick"
settings.register_profile(ALL, derandomize=True, deadline=None, max_examples=100)
settings.register_profile(QUICK, settings.get_profile(ALL), max_examples=25)


def examples(times: float, **more: Any) -> settings:
    """As many examples as a test without this gets, times this."""
    return settings(max_examples=max(1, round(times * settings().max_examples)), **more)

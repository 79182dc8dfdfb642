"""The header `Prefer` (RFC 7240), as far as the gateway reads it: `wait`. Pure."""

from __future__ import annotations

LONGEST_DIGITS = 9  # more of them are some number that is longer than anybody waits


def wait_of(prefer: bytes) -> int | None:
    """How many seconds the client would wait; None where it doesn't say, or says what the RFC doesn't know.

    Preferences that can't be understood are ignored, as the RFC asks; of one that is given twice, the first counts.
    """
    for preference in prefer.decode("latin-1").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            digits = value.strip().strip('"')
            if not (digits.isascii() and digits.isdecimal()):
                return None
            return int(digits) if len(digits) <= LONGEST_DIGITS else 10**LONGEST_DIGITS
    return None

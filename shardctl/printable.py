"""Text that can't affect where it is shown: control and format characters as escapes. Pure.

Messages and files may contain anything. Control characters (C0, DEL, C1) make a terminal move, clear or answer; format
characters reorder what is read (bidi) or are invisible, so that a line says another thing than it shows.
"""

from __future__ import annotations

import re

# Unicode's categories Cc, Cf, Cs, Zl and Zp, the last two being line breaks to some readers.
_ACTIVE = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_IN_A_LINE = re.compile(f"[{_ACTIVE}]")
_IN_LINES = re.compile(f"(?!\n)[{_ACTIVE}]")


def printable(text: str) -> str:
    r"""Text of one or more lines: only its newlines stay as they are. `\x1b`, `\u202e` and `\U000e0001` stand for the rest."""
    return text if text.isascii() and text.isprintable() else _IN_LINES.sub(_escaped, text)


def printable_line(text: str) -> str:
    """Text as one line: newlines are escaped too."""
    return text if text.isascii() and text.isprintable() else _IN_A_LINE.sub(_escaped, text)


def printable_json(text: str) -> str:
    """JSON with the same data: outside strings it has no such character but newlines, and in them JSON has its own escapes."""
    return text if text.isascii() and text.isprintable() else _IN_LINES.sub(_as_json, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _as_json(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"

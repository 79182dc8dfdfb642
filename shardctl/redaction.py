"""Text without the secrets of URLs; every error, log line and audit line passes through it. Pure.

    postgresql://shop:***@db.example.com:5432/orders?sslmode=verify-full&sslpassword=***

A password may contain characters that a URL shouldn't (`@`, `/`, `#`, blanks), be in the wrong field, or be cut off. So where the
end of a secret is unclear, more is hidden: hiding a host costs less than showing a password.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
# What may be shown of a URL's query. Any other parameter may be a secret under a name of its own.
SHOWN_PARAMETERS = frozenset(
    (
        *(
            "application_name",
            "charset",
            "connect_timeout",
            "dbname",
            "host",
            "port",
            "prepare_threshold",
            "user",
            "unix_socket",
        ),
        *("passfile", "protocol", "query", "service", "target_session_attrs"),
        *("sslcert", "sslkey", "sslmode", "sslrootcert", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key"),
    )
)
PLACEHOLDER = "password"  # as in our own examples of URLs
LOOK_AHEAD = 256  # characters beyond a blank in which the end of a password is looked for

_MARK = re.compile(r":/{1,3}")  # a normalised path has one slash where a URL had two
_AUTHORITY_END = re.compile(r"[/?#\s]")
_PORT = re.compile(r"\d{1,5}(?:[/?#\s,;.)\]}'\"`]|$)")
_HAS_USERS_ALONE = re.compile(r"(?:postgres|postgresql|mysql|mariadb)(?:\+\w+)?", re.IGNORECASE)
_PARAMETER = re.compile(r"[^&;]+")  # of a URL's query
_SCHEME = re.compile(r"[A-Za-z0-9+.-]{1,40}\Z")

# `password=…` of a connection string, `"token": "…"` of JSON. Lengths are bounded, so that time grows with the text alone.
_NAMED = re.compile(
    r"""((?:password|passwd|passphrase|secret|token|api_?key|access_?key|credentials?)["']?\s{0,4}(?:=|(?<=["']):)\s{0,4})"""
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s&;,"')\]}]+)""",
    re.IGNORECASE | re.DOTALL,
)
_BEARER = re.compile(r"\b(bearer|basic)(\s{1,4})[A-Za-z0-9+/._~=-]{16,}", re.IGNORECASE)
# name:password@host without a scheme. Google's members and images by digest look alike.
_BARE = re.compile(
    r"(?<![\w.%+-])(?!(?:serviceAccount|user|group|domain|principal|principalSet|mailto):)"
    r"([\w.%+-]{0,64}):(?!//)([^\s@'\"]{1,512})@(?!sha256:)(?=[\w\[.])"
)


def redacted(text: str) -> str:
    """Text with the secrets of every URL in it hidden, and those of connection strings and Authorization headers."""
    if ":/" in text:
        text = _without_urls_secrets(text)
    if "=" in text or ":" in text:
        text = _NAMED.sub(rf"\1{HIDDEN}", text)
    if "@" in text:
        text = _BARE.sub(_bare, text)
    return _BEARER.sub(rf"\1\2{HIDDEN}", text)


def redacted_value(text: str) -> str:
    """The same of one value, which may be a URL as a whole, blanks and all."""
    mark = _MARK.search(text)
    return text[: mark.end()] + _url(text[: mark.start()], text[mark.end() :]) if mark else redacted(text)


def _bare(match: re.Match[str]) -> str:
    return match[0] if match[2] == PLACEHOLDER else f"{match[1]}:{HIDDEN}@"


def _without_urls_secrets(text: str) -> str:
    parts: list[str] = []
    at = 0
    while mark := _MARK.search(text, at):
        begin = mark.end()
        end = _end(text, begin)
        parts += (text[at:begin], _url(text[max(0, mark.start() - 40) : mark.start()], text[begin:end]))
        at = end
    return "".join((*parts, text[at:]))


_BLANK = re.compile(r"\s")


def _end(text: str, begin: int) -> int:
    """Where a URL ends: at a blank, unless its password seems to hold that one."""
    blank = _BLANK.search(text, begin)
    end = blank.start() if blank else len(text)
    if "@" not in text[begin:end] and _password_begins(text[begin:end]):
        line = text.find("\n", end, end + LOOK_AHEAD)
        sign = text.find("@", end, end + LOOK_AHEAD if line < 0 else line)
        if sign >= 0:
            blank = _BLANK.search(text, sign)
            return blank.start() if blank else len(text)
    return end


def _password_begins(run: str) -> bool:
    """Whether `name:` comes first, and what follows is no port."""
    name, colon, rest = run.partition(":")
    return bool(colon) and not _AUTHORITY_END.search(name) and not run.startswith("[") and not _PORT.match(rest)


def _url(before: str, run: str) -> str:
    """What follows `://`, without its secrets."""
    scheme = _SCHEME.search(before)
    authority = _AUTHORITY_END.split(run, maxsplit=1)[0]
    if "@" in authority or ("@" in run and _password_begins(run)):
        userinfo, _, rest = run.rpartition("@")
        name, colon, password = userinfo.partition(":")
        if colon:
            shown = f"{name}:{password if password == PLACEHOLDER else HIDDEN}@"
        else:
            shown = f"{name}@" if scheme and _HAS_USERS_ALONE.fullmatch(scheme[0]) else f"{HIDDEN}@"
    elif _password_begins(run):
        return f"{run.partition(':')[0]}:{HIDDEN}"
    else:
        shown, rest = "", run
    rest, fragment, _ = rest.partition("#")
    path, mark, query = rest.partition("?")
    return shown + path + mark + _PARAMETER.sub(_parameter, query) + (f"#{HIDDEN}" if fragment else "")


def _parameter(match: re.Match[str]) -> str:
    text = match[0]
    name, equals, _ = text.partition("=")
    if not equals:
        return HIDDEN
    return text if unquote(name).lower() in SHOWN_PARAMETERS else f"{name}={HIDDEN}"

"""The templates: where they are, and how each value becomes one YAML scalar that it can't break out of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateRuntimeError,
    TemplateSyntaxError,
    Undefined,
)
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from shardctl.errors import UsageError


class Lines(str):
    """Text to show as it stands, line by line, under a key of the top level. Its lines must be printable ASCII."""

    __slots__ = ()


def lines(text: str) -> str:
    """The text to be shown line by line where it can be, else as one quoted scalar."""
    return Lines(text) if _LINES.fullmatch(text) else text


# Plain scalars that every YAML version reads as text: letters first, and none of the words that mean something else.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)\Z)[A-Za-z][A-Za-z0-9_./|-]*", re.IGNORECASE | re.ASCII)
_SINGLE_QUOTABLE = re.compile(r"[ -&(-~]*")  # printable ASCII without the quote itself
_MUST_ESCAPE = re.compile(r'["\\]|[^ -~]')
_LINES = re.compile(r"(?:[!-~][ -~]*\n)(?:[ -~]*\n)*")


def scalar(value: object) -> str:
    """The value as one YAML scalar, whatever it holds. Raises on anything but text, whole numbers and booleans."""
    if isinstance(value, Lines):
        return _block(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Undefined):
        return str(value)  # raises, naming what isn't defined
    raise TemplateRuntimeError(f"a template shows text, whole numbers and booleans, not {type(value).__name__}")


def _block(text: Lines) -> str:
    if not _LINES.fullmatch(text):
        raise TemplateRuntimeError("only whole lines of printable ASCII can be shown line by line")
    return "|\n    " + text[:-1].replace("\n", "\n    ")


@lru_cache(maxsize=16_384)  # most values repeat: labels, names, the project
def _text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return str(text)
    if '"' in text and _SINGLE_QUOTABLE.fullmatch(text):
        return f"'{text}'"
    return f'"{_MUST_ESCAPE.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        raise TemplateRuntimeError("half a surrogate pair isn't text")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # JSON's pairs of \u are not YAML


_EXPRESSION = "\0"
_LINE_WITH_EXPRESSION = re.compile(r" *(?:- )*(?:(?:(?:\0|[\w./-]+): )?\0|\0:(?: [^\0]*)?)")


class _WholeScalars(Extension):
    """Refuses a template in which an expression is only part of a scalar, where encoding can't keep it inside."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        tokens = list(stream)
        text, opened = [], 0
        lines: list[int] = []  # the template's line of each expression
        for token in tokens:
            if token.type == "variable_begin":
                lines.append(token.lineno)
                text.append(_EXPRESSION)
            elif token.type == "data":
                text.append(token.value)
        for line in "".join(text).split("\n"):
            if _EXPRESSION in line and not _LINE_WITH_EXPRESSION.fullmatch(line):
                raise TemplateSyntaxError(
                    "an expression must be a whole key, value or list item, so that no value can break out of it",
                    lines[opened],
                    stream.name,
                    stream.filename,
                )
            opened += line.count(_EXPRESSION)
        return tokens


@cache
def environment(templates: Path | None) -> Environment:
    """The templates, each compiled once a process."""
    loaders = [FileSystemLoader(built_in())]
    if templates is not None:
        _refuse_unless_overriding(templates)
        loaders.insert(0, FileSystemLoader(templates))
    return Environment(
        loader=ChoiceLoader(loaders),
        finalize=scalar,
        undefined=StrictUndefined,
        extensions=[_WholeScalars],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
        autoescape=False,  # noqa: S701 - this is YAML: `scalar` encodes every expression
    )


def _refuse_unless_overriding(templates: Path) -> None:
    """Raise UsageError for a template that overrides none: it would silently have no effect."""
    if not templates.is_dir():
        raise UsageError(f"{templates}: no such folder of templates")
    known = sorted(path.name for path in built_in().glob("*.j2"))
    for path in sorted(templates.rglob("*.j2")):
        if path.relative_to(templates).as_posix() not in known and not path.name.startswith("_"):
            close = get_close_matches(path.name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else f" Templates: {', '.join(known)}."
            raise UsageError(
                f"{path}: overrides no template.{hint} A name that begins with '_' is for what others include."
            )


def place_of(error: TemplateError) -> str | None:
    """The template and line that an error comes from, `FILE:LINE`; None where that is unknown."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or error.name}:{error.lineno}"
    place, frame = None, error.__traceback__
    while frame:  # Jinja puts templates into the traceback; the innermost is where it happened
        if frame.tb_frame.f_code.co_filename.endswith(".j2"):
            place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


def built_in() -> Path:
    """The built-in templates: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "_templates"
    return shipped if shipped.is_dir() else package.parent / "templates"

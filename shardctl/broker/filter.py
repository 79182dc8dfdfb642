r"""Subscription filters: text → predicate over a message's attributes.

    filter  = term { AND term } | term { OR term }        mixing AND and OR without parentheses is an error
    term    = [ NOT | "-" ] term | "(" filter ")" | test
    test    = attributes:KEY | attributes.KEY = "V" | attributes.KEY != "V" | hasPrefix(attributes.KEY, "S")

Operators are in capitals, everything is case-sensitive, and a key with other characters than letters, digits, `-` and
`_` is quoted. Strings take the escapes \\ \" \' \n \r \t \a \b \f \v \?, \xHH, \OOO, \uHHHH and \UHHHHHHHH. What the
service's documents leave open is refused here, so that a filter accepted by the broker is accepted by the service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from shardctl.broker.errors import InvalidArgumentError

MAX_BYTES = 256

Predicate = Callable[[Mapping[str, str]], bool]

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>"(?:[^"\\\n]|\\.)*") | (?P<word>[A-Za-z0-9_][A-Za-z0-9_\-]*)
        | (?P<punct>!=|[-:.=(),])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-3][0-7]{2})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_SELF_ESCAPES = "\\\"'?`"
_OPERATORS = frozenset({"AND", "OR", "NOT"})


class FilterSyntaxError(InvalidArgumentError):
    """The text isn't a filter; `position` counts characters from 0."""

    def __init__(self, text: str, position: int, fault: str) -> None:
        super().__init__(f"Invalid filter at position {position}: {fault} (filter={text!r})")
        self.position = position


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def compile_filter(text: str) -> Predicate:
    """A predicate true for the attributes the filter lets through; empty text lets everything through.

    Raises `InvalidArgumentError` for more than 256 bytes of UTF-8 and for syntax errors, with the position.
    """
    size = len(text.encode())
    if size > MAX_BYTES:
        raise InvalidArgumentError(f"The filter is {size} bytes long; at most {MAX_BYTES} are allowed.")
    if not text:
        return lambda _attributes: True
    parser = _Parser(text)
    predicate = parser.filter()
    if parser.token.kind != "end":
        parser.fail("expected AND, OR or the end")
    return predicate


class _Parser:
    """Recursive descent; each method returns the predicate of what it read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split())
        self._next = 0

    def _split(self) -> list[_Token]:
        tokens, position = [], 0
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                raise FilterSyntaxError(self._text, position, f"unexpected {self._text[position]!r}")
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match.group(), position))
            position = match.end()
        return [*tokens, _Token("end", "the end", len(self._text))]

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def fail(self, fault: str) -> NoReturn:
        raise FilterSyntaxError(self._text, self.token.position, f"{fault}, found {self.token.text}")

    def _accept(self, text: str) -> bool:
        if self.token.kind != "string" and self.token.text == text:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self.fail(f"expected {text}")

    def filter(self) -> Predicate:
        terms = [self._term()]
        operator = self.token.text if self.token.text in {"AND", "OR"} and self.token.kind == "word" else ""
        while operator and self._accept(operator):
            terms.append(self._term())
        if operator and self.token.text in {"AND", "OR"}:
            self.fail("AND and OR can't be mixed without parentheses")
        if operator == "AND":
            return lambda attributes: all(term(attributes) for term in terms)
        if operator == "OR":
            return lambda attributes: any(term(attributes) for term in terms)
        return terms[0]

    def _term(self) -> Predicate:
        if self._accept("NOT") or self._accept("-"):
            inner = self._term()
            return lambda attributes: not inner(attributes)
        if self._accept("("):
            inner = self.filter()
            self._expect(")")
            return inner
        return self._test()

    def _test(self) -> Predicate:
        if self._accept("hasPrefix"):
            self._expect("(")
            self._expect("attributes")
            self._expect(".")
            key = self._key()
            self._expect(",")
            prefix = self._string()
            self._expect(")")
            return lambda attributes: key in attributes and attributes[key].startswith(prefix)
        if not self._accept("attributes"):
            self.fail("expected attributes, hasPrefix, NOT or (")
        if self._accept(":"):
            key = self._key()
            return lambda attributes: key in attributes
        self._expect(".")
        key = self._key()
        if self._accept("="):
            value = self._string()
            return lambda attributes: attributes.get(key) == value
        if not self._accept("!="):
            self.fail("expected = or !=")
        value = self._string()
        return lambda attributes: attributes.get(key) != value

    def _key(self) -> str:
        if self.token.kind == "string":
            return self._string()
        if self.token.kind != "word" or self.token.text in _OPERATORS:
            self.fail("expected an attribute's key")
        self._next += 1
        return self._tokens[self._next - 1].text

    def _string(self) -> str:
        token = self.token
        if token.kind != "string":
            self.fail("expected a string in double quotes")
        self._next += 1

        def plain(match: re.Match[str]) -> str:
            two, four, eight, octal, char = match.groups()
            code = int(two or four or eight, 16) if two or four or eight else int(octal, 8) if octal else None
            if code is not None and code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                return chr(code)
            if char in _PLAIN_ESCAPES:
                return _PLAIN_ESCAPES[char]
            if char and char in _SELF_ESCAPES:
                return str(char)
            position = token.position + 1 + match.start()
            raise FilterSyntaxError(self._text, position, f"unknown escape {match.group()}")

        return _ESCAPE.sub(plain, token.text[1:-1])

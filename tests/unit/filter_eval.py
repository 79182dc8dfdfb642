"""A reading of Pub/Sub's filter grammar that shares no code with what writes filters: text in, predicate out."""

import re
from functools import cache

TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_-]+)|(?P<sign>!=|[=(),.:]))')


class BadFilterError(Exception):
    pass


@cache
def parse(text):
    """A function from attributes to True or False. Raises BadFilterError for what Pub/Sub would refuse."""
    if len(text.encode()) > 256:
        raise BadFilterError("too long")
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = TOKEN.match(text, at)
        if not match:
            raise BadFilterError(text[at:])
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    tokens.append(("end", ""))
    test, rest = expression(tokens)
    if rest != [("end", "")]:
        raise BadFilterError(rest)
    return test


def expression(tokens):
    first, tokens = term(tokens)
    terms, operator = [first], None
    while tokens[0] in [("word", "AND"), ("word", "OR")]:
        if operator not in (None, tokens[0][1]):
            raise BadFilterError("AND and OR mixed without parentheses")
        operator = tokens[0][1]
        following, tokens = term(tokens[1:])
        terms.append(following)
    combine = any if operator == "OR" else all
    return (lambda attributes: combine(term(attributes) for term in terms)), tokens


def term(tokens):
    kind, text = tokens[0]
    if (kind, text) == ("word", "NOT"):
        inner, tokens = term(tokens[1:])
        return (lambda attributes: not inner(attributes)), tokens
    if text == "(":
        inner, tokens = expression(tokens[1:])
        return inner, expect(tokens, ")")
    if (kind, text) == ("word", "hasPrefix"):
        key, tokens = attribute(expect(tokens[1:], "("))
        prefix, tokens = string(expect(tokens, ","))
        return (lambda attributes: key in attributes and attributes[key].startswith(prefix)), expect(tokens, ")")
    key, tokens = attribute(tokens)
    sign = tokens[0][1]
    value, tokens = string(tokens[1:])
    if sign == "=":
        return (lambda attributes: attributes.get(key) == value), tokens
    if sign == "!=":
        return (lambda attributes: attributes.get(key) != value), tokens
    raise BadFilterError(sign)


def attribute(tokens):
    tokens = expect(expect(tokens, "attributes"), ".")
    if tokens[0][0] == "string":
        return string(tokens)
    if tokens[0][0] != "word" or not re.match("[A-Za-z_]", tokens[0][1]):
        raise BadFilterError(tokens[0])
    return tokens[0][1], tokens[1:]


def string(tokens):
    if tokens[0][0] != "string":
        raise BadFilterError(tokens[0])
    return re.sub(r"\\(.)", r"\1", tokens[0][1][1:-1]), tokens[1:]


def expect(tokens, text):
    if tokens[0][0] == "string" or tokens[0][1] != text:
        raise BadFilterError(f"{text} expected, {tokens[0]} found")
    return tokens[1:]

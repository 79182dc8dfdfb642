"""How every benchmark is called and what it prints: a table for people, one JSON object for machines."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Column, Table

say = Console(stderr=True, highlight=False).print


def parser_of(text):
    """With `--json`; the first line of the module's docstring describes it."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def show(result, as_json, goals=None):
    """Figures of one case."""
    if as_json:
        print(json.dumps(result))
        return
    show_cases({"measured": result}, as_json=False, goals=goals)


def show_cases(cases, as_json, goals=None):
    """Figures of several cases beside each other: `cases` holds a mapping of figures by each case's name."""
    if as_json:
        print(json.dumps(cases))
        return
    names = dict.fromkeys(name for figures in cases.values() for name in figures)
    table = Table(Column("figure", no_wrap=True), *cases, *(["goal"] if goals else []))
    for name in names:
        values = (_text(figures[name]) if name in figures else "" for figures in cases.values())
        table.add_row(name, *values, *([goals.get(name, "")] if goals else []))
    Console().print(table)


def _text(value):
    if value is None:
        return "not here"
    return f"{value:,}" if isinstance(value, int | float) else str(value)

"""The rules of the tree: what may import what, that no import runs in a circle, how long a function may be, and names.

Every import counts, wherever it stands: at the top, inside a function, or for the type checker alone.
"""

import ast
import importlib.util
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs/architecture.py")
architecture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architecture)

VOCABULARY = tuple(
    f"shardctl.{name}"
    for name in (
        "fleet",
        "wire",
        "shard",
        "outbox",
        "supervision",
        "serving",
        "oidc",
        "errors",
        "redaction",
        "printable",
    )
)
ROOT_MODULES = {
    "atomicfile",
    "audit",
    "capacity",
    "errors",
    "lockfile",
    "oidc",
    "printable",
    "provision",
    "publisher",
    "redaction",
    "topicclient",
}
CONSUMER_ROOT_MODULES = {"delivery", "errors"}
CONSUMER_LAYERS = (  # from the highest down
    ("process",),
    ("leader",),
    ("replica",),
    ("store", "intake"),
    ("sinks", "redis", "pubsub"),
    ("database", "observability"),
    ("delivery",),
    ("errors",),
)
LONGEST_FUNCTION_LINES = 60
NO_NOUNS = frozenset(
    {"each", "found", "held", "it", "of", "one", "said", "that", "these", "this", "those", "told", "too"}
)
DECIDED_NAMES = {"consumer/store/transaction.py: held"}  # a count of Outcome, named as its metric is
KNOWN = architecture.modules("shardctl", "consumer")


@cache
def graph():
    """Not while tests are collected: it takes a second in each process that only asks for their names."""
    return architecture.graph(KNOWN)


def among(name, allowed):
    return any(name == package or name.startswith(f"{package}.") for package in allowed)


def strangers(importers, allowed):
    """Imports by modules of `importers` of what isn't `allowed`, in words."""
    return [
        f"{module} imports {name}"
        for module, imported in graph().items()
        if among(module, importers)
        for name in imported
        if not among(name, allowed)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import shardctl.fleet.spec as spec", {"shardctl.fleet.spec"}),
        ("from shardctl.fleet import spec, __doc__", {"shardctl.fleet.spec", "shardctl.fleet"}),
        ("from shardctl.fleet.spec import Fleet", {"shardctl.fleet.spec"}),
        ("def f():\n    from shardctl.local import fleet", {"shardctl.local.fleet"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shardctl.render import Document", {"shardctl.render"}),
        ("from ..errors import x", {"consumer.errors"}),
        ("from . import base", {"consumer.sinks.base"}),
        ("import os, json", set()),
    ],
)  # fmt: skip
def test_every_form_of_an_import_is_found(source, expected):
    assert set(architecture.imports(source, "consumer.sinks.router", KNOWN)) == expected


def test_the_consumer_imports_only_the_vocabulary():
    assert not strangers(["consumer"], ["consumer", *VOCABULARY])


def test_the_vocabulary_stands_on_itself():
    """Otherwise a consumer would import the rest of `shardctl` through it."""
    assert not strangers(VOCABULARY, VOCABULARY)


def test_shardctl_never_imports_the_consumer():
    assert not strangers(["shardctl"], ["shardctl"])


def test_no_import_runs_in_a_circle():
    try:
        tuple(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


@pytest.mark.parametrize("number", range(len(CONSUMER_LAYERS)), ids=lambda number: "+".join(CONSUMER_LAYERS[number]))
def test_a_folder_of_the_consumer_imports_only_lower_layers(number):
    lower = [f"consumer.{name}" for layer in CONSUMER_LAYERS[number + 1 :] for name in layer]
    for name in CONSUMER_LAYERS[number]:
        assert not strangers([f"consumer.{name}"], [f"consumer.{name}", *lower, "shardctl"])


def test_every_folder_of_the_consumer_has_its_layer():
    folders = {
        architecture.folder_of(module).removeprefix("consumer/") for module in KNOWN if among(module, ["consumer"])
    }
    assert folders - {"consumer", "__main__"} == {name for layer in CONSUMER_LAYERS for name in layer}


@pytest.mark.parametrize(
    ("plane", "decided"),
    [("shardctl", ROOT_MODULES), ("consumer", CONSUMER_ROOT_MODULES)],
    ids=["shardctl", "consumer"],
)
def test_a_new_module_at_the_root_is_a_decision(plane, decided):
    there = {path.stem for path in (ROOT / plane).glob("*.py")} - {"__init__", "__main__"}
    assert there == decided


def test_no_function_is_longer_than_a_screen():
    assert not [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines"
        for path in KNOWN.values()
        if path.read_bytes().count(b"\n") > LONGEST_FUNCTION_LINES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION_LINES
    ]


def test_the_pictures_are_of_todays_code():
    assert architecture.PAGE.read_text() == architecture.page(), "`make docs` draws them again; look at them"


def variables(source):
    """The names that assignments, loops, comprehensions and parameters bind; what `as` names in `with` is one, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


@pytest.mark.parametrize(
    "source",
    [
        "it = 1",
        "a, (b, *it) = c",
        "(it := 1)",
        "it: int = 1",
        "for it in a: pass",
        "[b for it in a]",
        "with a as it: pass",
        "def f(it): pass",
        "def f(*, it=1): pass",
        "lambda it: 1",
        "class A:\n    it: int",
    ],
)
def test_every_form_of_a_variable_is_seen(source):
    assert "it" in set(variables(source))


@pytest.mark.slow
def test_variables_are_nouns():
    """A name says what a variable holds: message, row, slot. A pronoun or a participle alone says nothing."""
    bad = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("shardctl", "consumer", "bench", "tests", "docs", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for name in NO_NOUNS.intersection(variables(path.read_bytes()))
    }
    assert sorted(bad) == sorted(DECIDED_NAMES)

"""The two planes: `consumer` imports the shared vocabulary of `shardctl`, and `shardctl` never imports `consumer`.

Every import counts, wherever it stands: at the top, inside a function, or for the type checker alone.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a message, a shard's configuration and a shard's database hold, and how a task's trouble is reported.
# A new entry is a decision: ARCHITECTURE.md lists them too.
VOCABULARY = {
    "shardctl.backends",
    "shardctl.background",
    "shardctl.backoff",
    "shardctl.barrier",
    "shardctl.bodies",
    "shardctl.databaseurl",
    "shardctl.errors",
    "shardctl.faults",
    "shardctl.identity",
    "shardctl.jsontext",
    "shardctl.keyspace",
    "shardctl.lanes",
    "shardctl.marks",
    "shardctl.message",
    "shardctl.oidc",
    "shardctl.printable",
    "shardctl.redaction",
    "shardctl.schema",
    "shardctl.serving",
    "shardctl.settings",
    "shardctl.shard",
    "shardctl.shardconfig",
    "shardctl.trouble",
    "shardctl.values",
}
# What the vocabulary is built on; a consumer loads it, and no consumer module names it.
FOUNDATION = {
    "shardctl.coverage",
    "shardctl.credentials",
    "shardctl.cron",
    "shardctl.filters",
    "shardctl.model",
    "shardctl.scalars",
    "shardctl.schedules",
    "shardctl.spec",
    "shardctl.topology",
    "shardctl.yamlfile",
}


def modules(package: str) -> dict[str, Path]:
    """Each module of a package by its dotted name."""
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"{package} has no modules"
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


KNOWN = modules("shardctl") | modules("consumer")


def imports(source: str, module: str = "", *, package: bool = False) -> Iterator[str]:
    """The dotted names of all modules of ours that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in ("shardctl", "consumer"))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if package else module.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            if base.partition(".")[0] in ("shardctl", "consumer"):
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    yield name if name in KNOWN else base


@functools.cache  # nearly every test here asks of every module
def imported_by(module: str) -> set[str]:
    path = KNOWN[module]
    return set(imports(path.read_text(), module, package=path.name == "__init__.py"))


def among(name: str, allowed: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import shardctl.spec as spec", {"shardctl.spec"}),
        ("from shardctl import spec, __doc__", {"shardctl.spec", "shardctl"}),
        ("from shardctl.spec import Fleet", {"shardctl.spec"}),
        ("def f():\n    from shardctl.local import fleet", {"shardctl.local.fleet"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shardctl.render import Document", {"shardctl.render"}),
        ("from ..handle import x", {"consumer.handle"}),
        ("from . import base", {"consumer.sinks.base"}),
        ("import os, json", set()),
    ],
)  # fmt: skip
def test_every_form_of_an_import_is_found(source, found):
    assert set(imports(source, "consumer.sinks.router")) == found


def test_the_consumer_imports_only_the_vocabulary():
    strangers = {
        f"{module} imports {name}"
        for module in KNOWN
        if module.startswith("consumer")
        for name in imported_by(module)
        if not among(name, VOCABULARY | {"consumer"})
    }
    assert not strangers


def test_shardctl_never_imports_the_consumer():
    strangers = {
        f"{module} imports {name}"
        for module in KNOWN
        if module.startswith("shardctl")
        for name in imported_by(module)
        if among(name, {"consumer"})
    }
    assert not strangers


def test_the_vocabulary_stands_on_itself():
    """What a consumer would otherwise import through it by the back door."""
    strangers = {
        f"{module} imports {name}"
        for module in KNOWN
        if among(module, VOCABULARY | FOUNDATION)
        for name in imported_by(module)
        if not among(name, VOCABULARY | FOUNDATION)
    }
    assert not strangers


@pytest.mark.parametrize("name", sorted(VOCABULARY | FOUNDATION))
def test_nothing_is_allowed_that_nobody_needs(name):
    needing = [module for module in KNOWN if among(module, {"consumer"} | (FOUNDATION | VOCABULARY) - {name})]
    assert any(among(found, {name}) for module in needing for found in imported_by(module))

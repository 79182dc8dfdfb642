"""Reading a YAML file that a person wrote: plain data, the line of each value, and each trap of YAML refused with its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shardctl.errors import UsageError

MAX_BYTES = 8 * 1024 * 1024
MAX_NODES = 1_000_000
MAX_DEPTH = 100
MAX_DIGITS = 18  # of a number: what every reader of JSON or YAML holds exactly

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where it was built: a thousand shards in 0.1 s
# Numbers that YAML 1.1 reads differently than a person does: octal, sexagesimal, digits with underscores.
_SURPRISING_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-9_.]+)+|[0-9]+_[0-9_]*)")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq"))


class YamlError(UsageError):
    """The file isn't plain YAML."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """`data` is made of dict, list, str, int, float, bool and None. Aliased values are shared: don't change it."""

    path: str
    data: Any
    root: yaml.Node | None
    _by_key: dict[int, dict[str, yaml.Node]] = field(default_factory=dict, repr=False, compare=False)

    def line_of(self, path: Sequence[str | int]) -> int | None:
        """The line, counted from 1, of the value at `path` or of its nearest parent that the file holds."""
        node = self._nearest(path)
        return node.start_mark.line + 1 if node else None

    def written(self, path: Sequence[str | int]) -> str | None:
        """The scalar at `path` exactly as it stands in the file, before YAML gave it a type."""
        node = self._nearest(path)
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def _nearest(self, path: Sequence[str | int]) -> yaml.Node | None:
        node = self.root
        for part in path:
            child: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                child = self._values_of(node).get(str(part))
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                child = node.value[part]
            if child is None:
                break
            node = child
        return node

    def _values_of(self, mapping: yaml.MappingNode) -> dict[str, yaml.Node]:
        """Made once a mapping: a file may have a fault in each of many thousand keys."""
        values = self._by_key.get(id(mapping))
        if values is None:
            values = self._by_key[id(mapping)] = {key.value: value for key, value in reversed(mapping.value)}
        return values


def read(path: Path) -> YamlFile:
    """Read a file. Raises YamlError that names the file, the line and the way out."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise YamlError(f"{path}: there is no such file. `shardctl init` writes one; -f names another.") from error
    except OSError as error:
        raise YamlError(f"{path}: can't be read: {error.strerror}. Name a file that you may read with -f.") from error
    if len(raw) > MAX_BYTES:
        raise YamlError(
            f"{path}: larger than {MAX_BYTES // 1024**2} MiB. Split the fleet, or check that this is the right file."
        )
    try:
        return parse(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: byte {error.start} isn't UTF-8. Save the file as UTF-8.") from error


def parse(text: str, path: str = "shards.yaml") -> YamlFile:
    """Read text; `path` is what errors call it. Raises YamlError."""
    try:
        _refuse_depth(text, path)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _Traps(path).weigh(root, 0)
            data = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        hint = ""
        if mark and "\t" in "".join(text.split("\n")[mark.line : mark.line + 1])[: mark.column + 1]:
            hint = " YAML indents with spaces, never tabs."
        elif "another document" in str(error.problem):
            hint = " Keep one document a file."
        raise YamlError(f"{where}: not YAML: {error.problem or error.context}.{hint}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise YamlError(f"{path}: not YAML: {first_line}. Save it as plain UTF-8 text.") from error
    return YamlFile(path, data, root)


def _refuse_depth(text: str, path: str) -> None:
    """Raise on deep nesting before the loader meets it: it recurses in C, and its overflow would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                where = f"{path}:{event.start_mark.line + 1}" if event.start_mark else path
                raise YamlError(f"{where}: nested deeper than {MAX_DEPTH} levels. Check that this is the right file.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Traps:
    """Raises on duplicate or odd keys, surprising scalars, loops, and aliases that expand to too many values."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._weights: dict[int, int] = {}  # id of a finished node → how many nodes it unfolds to
        self._opened: set[int] = set()

    def weigh(self, node: yaml.Node, depth: int) -> int:
        if id(node) in self._weights:
            return self._weights[id(node)]
        if id(node) in self._opened:
            raise self._error(node, "an alias (*) refers to a value that contains it. Write the value out.")
        if depth > MAX_DEPTH:
            raise self._error(node, f"aliases nest deeper than {MAX_DEPTH} levels. Write the values out.")
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, _odd_tag(node))
        self._opened.add(id(node))
        weight = 1 + sum(self.weigh(child, depth + 1) for child in self._children(node))
        self._opened.discard(id(node))
        if weight > MAX_NODES:
            raise self._error(node, f"aliases unfold to over {MAX_NODES:,} values. Write fewer, or write them out.")
        self._weights[id(node)] = weight
        return weight

    def _children(self, node: yaml.Node) -> Iterator[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            yield from node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                self._check_key(key, first)
                first.setdefault(key.value, key.start_mark.line + 1)
                yield value

    def _check_key(self, key: yaml.Node, first: Mapping[str, int]) -> None:
        if not isinstance(key, yaml.ScalarNode):
            raise self._error(key, "a key must be plain text.")
        if key.tag == _TAG + "merge":
            return
        if key.value in first:
            raise self._error(key, f"the key {key.value!r} stands here and on line {first[key.value]}. Keep one.")
        if key.tag != _TAG + "str":
            raise self._error(key, f'YAML doesn\'t read the key {key.value} as text. Write "{key.value}".')

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if not node.style and _SURPRISING_NUMBER.fullmatch(node.value):  # quoted text has a style
            raise self._error(
                node,
                f"YAML doesn't read {node.value[:40]} as it looks. "
                f'Write "{node.value[:40]}" in quotes if it is a name, or a plain decimal number.',
            )
        if node.tag == _TAG + "int" and len(node.value) > MAX_DIGITS:
            raise self._error(node, f"a number of {len(node.value)} digits. Write it in quotes if it is a name.")

    def _error(self, node: yaml.Node, message: str) -> YamlError:
        return YamlError(f"{self._path}:{node.start_mark.line + 1}: {message}")


def _odd_tag(node: yaml.Node) -> str:
    if node.tag == _TAG + "timestamp":
        return f'YAML reads {node.value} as a date. Write "{node.value}" in quotes.'
    if isinstance(node, yaml.ScalarNode) and node.tag in (_TAG + "value", _TAG + "merge"):
        return f'YAML gives {node.value} a meaning of its own. Write "{node.value}" in quotes.'
    return f"the tag {node.tag.replace(_TAG, '!!')} isn't plain YAML. Remove it."

"""Reading a YAML file that a person wrote: plain data, the line of each value, and every trap of YAML refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shardctl.errors import UsageError

MAX_BYTES = 8 * 1024 * 1024
MAX_NODES = 1_000_000
MAX_DEPTH = 100

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where it was built: a thousand shards in 0.1 s
# Numbers that YAML 1.1 reads otherwise than a person does: octal, sexagesimal, digits with underscores.
_SURPRISING_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-9_.]+)+|[0-9]+_[0-9_]*)")


class YamlError(UsageError):
    """The file isn't plain YAML."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """`data` is made of dict, list, str, int, float, bool and None, and is a tree: nothing in it is shared."""

    path: str
    data: Any
    root: yaml.Node | None

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
                child = next((value for key, value in node.value if key.value == str(part)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                child = node.value[part]
            if child is None:
                break
            node = child
        return node


def read(path: Path) -> YamlFile:
    """Read a file. Raises YamlError that names the file, the line and the way out."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise YamlError(
            f"{path}: can't be read: {error.strerror}. `shardctl init` writes one to start from."
        ) from error
    if len(raw) > MAX_BYTES:
        raise YamlError(
            f"{path}: larger than {MAX_BYTES // 1024**2} MiB. Split the fleet, or check that this is the right file."
        )
    try:
        return parse(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: byte {error.start} isn't UTF-8. Save the file as UTF-8.") from error


def parse(text: str, path: str = "shards.yaml") -> YamlFile:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _refuse_traps(root, path)
            data = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        hint = " YAML indents with spaces, never tabs." if "\\t" in str(error) or "tab" in str(error) else ""
        raise YamlError(f"{where}: not YAML: {error.problem or error.context}.{hint}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise YamlError(f"{path}: not YAML: {first_line}.") from error
    return YamlFile(path, data, root)


def _refuse_traps(root: yaml.Node, path: str) -> None:
    """Raise on a duplicate or odd key, a surprising number, a loop, or aliases that unfold beyond all measure."""

    def at(node: yaml.Node) -> str:
        return f"{path}:{node.start_mark.line + 1}"

    seen: dict[int, int] = {}  # id of a finished node → how many nodes it unfolds to
    opened: set[int] = set()

    def weigh(node: yaml.Node, depth: int) -> int:
        if id(node) in seen:
            return seen[id(node)]
        if id(node) in opened:
            raise YamlError(f"{at(node)}: an alias (*) refers to a value that contains it. Write the value out.")
        if depth > MAX_DEPTH:
            raise YamlError(f"{at(node)}: nested deeper than {MAX_DEPTH} levels.")
        opened.add(id(node))
        total = 1
        if isinstance(node, yaml.ScalarNode):
            if node.style is None and _SURPRISING_NUMBER.fullmatch(node.value):
                raise YamlError(
                    f"{at(node)}: YAML doesn't read {node.value} as it looks. "
                    f'Write "{node.value}" in quotes if it is a name, or a plain decimal number.',
                )
        elif isinstance(node, yaml.MappingNode):
            keys: dict[str, yaml.Node] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise YamlError(f"{at(key)}: a key must be plain text.")
                if key.value in keys and key.value != "<<":
                    first = keys[key.value].start_mark.line + 1
                    raise YamlError(f"{at(key)}: the key {key.value!r} stands here and on line {first}. Keep one.")
                if key.tag == "tag:yaml.org,2002:merge":
                    pass
                elif key.tag != "tag:yaml.org,2002:str":
                    raise YamlError(f'{at(key)}: YAML doesn\'t read the key {key.value} as text. Write "{key.value}".')
                keys[key.value] = key
                total += 1 + weigh(value, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                total += weigh(item, depth + 1)
        if total > MAX_NODES:
            raise YamlError(f"{at(node)}: aliases unfold to over {MAX_NODES:,} values. Write fewer, or write them out.")
        opened.discard(id(node))
        seen[id(node)] = total
        return total

    weigh(root, 0)

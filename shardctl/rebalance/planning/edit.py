"""Writing the next `shards.yaml` from the text of the present one: what doesn't change keeps its every character.

YAML libraries that keep comments rewrite the rest in their own style. So this edits the text between the marks that the
parser gives, and then reads the result: it must be the fleet that was wanted, or nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from shardctl.errors import UsageError
from shardctl.fleet import yamlfile
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet, Previous, Shard

_BOM = "\ufeff"
_BLANK = r"(?:\s|#[^\n]*(?=\n))*"  # what may stand between a key and its value, or between two items


class EditError(UsageError):
    """The file is written in a way that can't be edited safely. Says what to write by hand."""


class _UneditableError(Exception):
    """Some part of the text isn't where it should be: an alias, most likely."""


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str


def edited(text: str, wanted: Fleet, path: str = "shards.yaml") -> str:
    """The text with `slots`, `generation` and `previous` as the wanted fleet has them, shards added and taken away.

    Raises EditError, and what `spec.load` raises for a text that isn't a fleet.
    """
    file = yamlfile.parse(text, path)
    present = {shard.name: shard for shard in fleet_from(file).shards}
    try:
        result = _Editor(text, file.root).edited(present, wanted)
        fits = fleet_from(yamlfile.parse(result, path)) == wanted
    except (_UneditableError, UsageError):
        fits = False
    if not fits:
        changed = [shard for shard in wanted.shards if present.get(shard.name) != shard]
        gone = present.keys() - {shard.name for shard in wanted.shards}
        raise EditError(
            f"{path}: its YAML can't be edited safely, most likely for an anchor or an alias (& or *) among the shards. "
            "Write by hand:\n"
            + "\n".join(
                [*(f"  - {_shard_line(shard)}" for shard in changed), *(f"  (no {name})" for name in sorted(gone))]
            )
        )
    return result


def settled(text: str, path: str = "shards.yaml") -> str:
    """The text once every slot has arrived: no `previous`, no shards without slots."""
    return edited(text, fleet_from(yamlfile.parse(text, path)).settled(), path)


class _Editor:
    def __init__(self, text: str, root: yaml.Node | None) -> None:
        # The parser drops a byte order mark before it counts.
        self._bom, self._text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._list = _value(root, "shards")
        self._edits: list[_Edit] = []

    def edited(self, present: dict[str, Shard], wanted: Fleet) -> str:
        if not isinstance(self._list, yaml.SequenceNode):
            raise _UneditableError
        later = {shard.name: shard for shard in wanted.shards}
        # By place: a name that is written as an alias has the anchor's text.
        for node, was in zip(self._list.value, present.values(), strict=True):
            if not isinstance(node, yaml.MappingNode) or not self._is_within(node, self._list):
                raise _UneditableError
            will = later.get(was.name)
            if will is None:
                self._remove(node)
            elif will != was:
                self._change(node, was, will)
        new = [shard for shard in wanted.shards if shard.name not in present]
        if new:
            self._append(self._list.value[-1], new)
        text = self._text
        # From the end, so that places stay right; of two at one place the earlier comes to stand first.
        for _, edit in sorted(
            enumerate(self._edits), key=lambda numbered: (numbered[1].start, numbered[0]), reverse=True
        ):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return self._bom + text

    def _change(self, node: yaml.MappingNode, was: Shard, will: Shard) -> None:
        written = {key.value: (key, value) for key, value in node.value}
        added = []
        if will.slots != was.slots:
            self._set(*_entry(written, "slots"), _slots(will.slots, flow=_in_flow(node)))
        if will.generation != was.generation:
            if "generation" in written:
                self._set(*written["generation"], str(will.generation))
            else:
                added.append(f"generation: {will.generation}")
        if will.previous != was.previous:
            if will.previous is None:
                self._drop(node, *_entry(written, "previous"))
            elif "previous" in written:
                key, value = written["previous"]
                self._between(key, value)
                self._edits.append(_Edit(key.end_mark.index, _end(value), f": {_previous(will.previous)}"))
            else:
                added.append(f"previous: {_previous(will.previous)}")
        if added:
            self._insert(node, *_entry(written, "slots"), added)

    def _set(self, key: yaml.Node, value: yaml.Node, text: str) -> None:
        self._between(key, value)
        style = value.style if isinstance(value, yaml.ScalarNode) else None
        if style in ("|", ">") or isinstance(value, yaml.MappingNode):
            raise _UneditableError
        if style and text != "[]":
            text = style + text.strip('"') + style
        self._edits.append(_Edit(value.start_mark.index, _end(value), text))

    def _insert(self, node: yaml.MappingNode, key: yaml.Node, value: yaml.Node, lines: Sequence[str]) -> None:
        """New entries after the one of `key`."""
        self._between(key, value)
        if _in_flow(node):
            self._edits.append(_Edit(_end(value), _end(value), "".join(f", {line}" for line in lines)))
            return
        indent, at = " " * key.start_mark.column, self._line_end(_end(value))
        self._edits.append(_Edit(at, at, "".join(f"{self._newline}{indent}{line}" for line in lines)))

    def _drop(self, node: yaml.MappingNode, key: yaml.Node, value: yaml.Node) -> None:
        self._between(key, value)
        self._cut(key.start_mark.index, _end(value), flow=_in_flow(node))

    def _remove(self, node: yaml.Node) -> None:
        start = node.start_mark.index
        if not _in_flow(self._list):
            start = self._dash(node)
        self._cut(start, _end(node), flow=_in_flow(self._list))

    def _cut(self, start: int, end: int, *, flow: bool) -> None:
        """Take away an entry: its lines or, in a flow collection, it and a comma."""
        if flow:
            if comma := re.search(rf",{_BLANK}$", self._text[:start]):
                start = comma.start()
            elif comma := re.compile(rf"{_BLANK},{_BLANK}").match(self._text, end):
                end = comma.end()
        else:
            line = self._text.rfind("\n", 0, start) + 1
            if self._text[line:start].strip():
                raise _UneditableError
            start, end = line, self._line_end(end)
            end += len(self._newline) if end < len(self._text) else 0
        self._edits.append(_Edit(start, end, ""))

    def _append(self, last: yaml.Node, shards: Sequence[Shard]) -> None:
        if _in_flow(self._list):
            self._edits.append(_Edit(_end(last), _end(last), "".join(f", {_shard_line(shard)}" for shard in shards)))
            return
        dash = self._dash(last)
        indent = " " * (dash - self._text.rfind("\n", 0, dash) - 1)
        lines = []
        for shard in shards:
            fields = [_shard_line(shard)] if _in_flow(last) else _fields(shard, flow=False)
            lines += [f"{indent}{'- ' if number == 0 else '  '}{field}" for number, field in enumerate(fields)]
        at = self._line_end(_end(last))
        self._edits.append(_Edit(at, at, "".join(self._newline + line for line in lines)))

    def _dash(self, node: yaml.Node) -> int:
        """Where the `-` of a block sequence's item stands."""
        before = self._text[: node.start_mark.index].rstrip()
        if not before.endswith("-"):
            raise _UneditableError
        return len(before) - 1

    def _line_end(self, index: int) -> int:
        """The end of the line, before its line break."""
        end = self._text.find(self._newline, index)
        return end if end >= 0 else len(self._text)

    def _between(self, key: yaml.Node, value: yaml.Node) -> None:
        """Raise unless the value follows its key: an alias has the marks of its anchor."""
        between = self._text[key.end_mark.index : value.start_mark.index]
        if not re.fullmatch(rf"{_BLANK}:{_BLANK}", between):
            raise _UneditableError

    @staticmethod
    def _is_within(node: yaml.Node, parent: yaml.Node) -> bool:
        return bool(parent.start_mark.index <= node.start_mark.index <= node.end_mark.index <= parent.end_mark.index)


def _value(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _entry(written: dict[str, tuple[yaml.Node, yaml.Node]], name: str) -> tuple[yaml.Node, yaml.Node]:
    if name not in written:  # it comes by a merge key
        raise _UneditableError
    return written[name]


def _in_flow(node: yaml.Node | None) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _end(node: yaml.Node) -> int:
    """The end of the node's text. A block's own mark runs on to the next token, past comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _shard_line(shard: Shard) -> str:
    return f"{{{', '.join(_fields(shard, flow=True))}}}"


def _fields(shard: Shard, *, flow: bool) -> list[str]:
    fields = [f"name: {shard.name}", f"slots: {_slots(shard.slots, flow=flow)}"]
    types = {"types": shard.types, "except_types": shard.except_types}
    # In quotes: YAML would read a type named `on` as a truth.
    fields += [f"{name}: [{', '.join(map(json.dumps, listed))}]" for name, listed in types.items() if listed]
    if shard.generation != 1:
        fields.append(f"generation: {shard.generation}")
    if shard.previous is not None:
        fields.append(f"previous: {_previous(shard.previous)}")
    return fields


def _previous(generations: Sequence[Previous]) -> str:
    listed = (
        f"{{generation: {former.generation}, slots: {_slots(former.slots, flow=True)}}}" for former in generations
    )
    return f"[{', '.join(listed)}]"


def _slots(slots: SlotSet, *, flow: bool) -> str:
    """Between braces a comma ends a value, so there more than one range is in quotes."""
    if not slots.ranges:
        return "[]"
    return f'"{slots}"' if flow and len(slots.ranges) > 1 else str(slots)

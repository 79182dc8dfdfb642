"""The list of commands in the help of a group: each summary whole, under the heading of its stage."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

ANY_LENGTH = 1_000  # of a summary, in characters: the formatter wraps it


class CommandList(TyperGroup):
    """A group whose help lists its commands by `rich_help_panel`, in the order of their first ones.

    Typer cuts each summary to what is left of one line.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's name
        width = max(map(len, self.commands))
        stages: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                stage = getattr(command, "rich_help_panel", None)
                heading = stage if isinstance(stage, str) else "Commands"
                stages.setdefault(heading, []).append((name.ljust(width), command.get_short_help_str(ANY_LENGTH)))
        for heading, rows in stages.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

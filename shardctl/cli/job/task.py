"""Which commands may run as a Job, and what the Job is given for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from shardctl import audit
from shardctl.cli.rebalance.rollout import NONE
from shardctl.errors import UsageError
from shardctl.fleet.settings.operator import OperatorCommand
from shardctl.fleet.spec import Fleet
from shardctl.render.jobs import Task

COMMANDS: tuple[OperatorCommand, ...] = get_args(OperatorCommand)
CHANGING_FILES = frozenset(
    {("provision",), ("migrate", "plan"), *(("rebalance", verb) for verb in ("plan", "start", "finish", "go", "back"))}
)
GITOPS = "--gitops"
ONCE = frozenset({("parked", "drop")})  # run again, it would drop the next message
# Options that make no sense in a pod, by the name of their parameter, and what to do instead.
_REFUSED: Mapping[str, str] = {
    "file": "give -f before the command: `shardctl job -f FILE -- …`",
    "database": "a URL would stand in the Job for all to read; the Job takes them from the fleet's Secrets",
    "watch": "a Job ends by itself; without --watch it shows the fleet once",
    "archive": "the file would be gone with the pod",
    "source": "the pod doesn't have the file",
    "following": "the pod doesn't have the file; it has the one that `rebalance plan` writes by default",
    "output": "the file would be gone with the pod; the default is brought back",
}


def task_of(root: Any, arguments: Sequence[str], fleet: Fleet, files: Mapping[str, str]) -> Task:
    """What the command line asks for; `root` is its parent's context in click. Raises UsageError, and click's own errors."""
    words, rest, context = _parsed(root, arguments)
    allowed = fleet.operator.commands if fleet.operator else ()
    if words[0] not in COMMANDS:
        raise UsageError(
            f"`shardctl {words[0]}` doesn't run as a Job: what it does belongs on your machine. Commands for a Job: "
            f"{', '.join(COMMANDS)}."
        )
    if words[0] not in allowed:
        raise UsageError(
            f"`operator.commands` doesn't name {words[0]}, so the operator has no right to run it. Add it, and apply the file: "
            "`shardctl apply`."
        )
    for name, why in _REFUSED.items():
        if _is_given(context, name):
            raise UsageError(f"{_option(context, name)} isn't for a Job: {why}.")
    rest = _without_gitops(rest)
    if context.params.get("apply", "") not in {"", NONE}:
        raise UsageError(
            "--apply isn't for a Job, whose account may not change workloads. Without it, `rebalance go` ends with exit code 4 "
            "where the file is to be applied; apply it here, and run the same again."
        )
    return Task(
        words=words,
        arguments=tuple(rest),
        files=files,
        new_shards=tuple(filter(None, (*(context.params.get("add") or ()), context.params.get("into") or ""))),
        changes_files=words in CHANGING_FILES,
        restarts=words not in ONCE and (context.params.get("limit") is None or words[-1] == "list"),
        actor=audit.actor(),
    )


def _parsed(root: Any, arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str], Any]:
    """The words that name the command, what follows them, and click's context with the parameters. Nothing is run."""
    context, command, rest = root, root.command, list(arguments)
    words: list[str] = []
    while hasattr(command, "resolve_command"):
        if not rest or rest[0].startswith("-"):
            raise UsageError(f"no command to run: `shardctl job -- {' '.join([*words, 'COMMAND'])}`.")
        name, command, rest = command.resolve_command(context, rest)
        words.append(name)
        if words[0] not in COMMANDS:
            break
    return (
        tuple(words),
        rest,
        command.make_context(words[-1], list(rest), parent=context) if words[0] in COMMANDS else context,
    )


def folder_of(root: Any, arguments: Sequence[str]) -> Path | None:
    """Where the manifests are written here, once the Job has ended at a merge that is due; None without --gitops."""
    folder: Path | None = _parsed(root, arguments)[2].params.get("gitops")
    return folder


def _without_gitops(arguments: Sequence[str]) -> list[str]:
    """A pod has no repository: without the option the command stops at the same places."""
    kept = list(arguments)
    while (at := next((number for number, word in enumerate(kept) if word.split("=")[0] == GITOPS), None)) is not None:
        del kept[at : at + (1 if "=" in kept[at] else 2)]
    return kept


def _is_given(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _option(context: Any, name: str) -> str:
    return next((parameter.opts[0] for parameter in context.command.params if parameter.name == name), name)

"""The command line: `main` runs a verb and turns its outcome into an exit code. Each verb is a plain function in its module.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 refused, 2 usage or invalid file, 3 bug, 4 waiting for
what others have to do, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from io import StringIO
from itertools import pairwise
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer

from shardctl import audit
from shardctl.cli import deadletter, migrate, outbox, parked, rebalance, signals, stdout
from shardctl.cli.adopt import adopt
from shardctl.cli.apply import apply
from shardctl.cli.broker import broker
from shardctl.cli.commandlist import CommandList
from shardctl.cli.diff import diff
from shardctl.cli.gateway import gateway
from shardctl.cli.init import init
from shardctl.cli.job import job
from shardctl.cli.local import demo, up
from shardctl.cli.provision import provision
from shardctl.cli.publish import publish
from shardctl.cli.relay import relay
from shardctl.cli.render import render
from shardctl.cli.route import route
from shardctl.cli.schema import schema
from shardctl.cli.simulate import simulate
from shardctl.cli.status import status
from shardctl.cli.terminal import out, say
from shardctl.cli.ui import ui
from shardctl.cli.validate import validate
from shardctl.cli.verify import verify
from shardctl.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError, UsageError
from shardctl.redaction import redacted


def _exit(code: int | None, **_: object) -> None:
    raise typer.Exit(code or EXIT_DONE)


app = typer.Typer(
    name="shardctl",
    cls=CommandList,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text starts in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
    result_callback=_exit,
)
_STAGES: dict[str, tuple[Any, ...]] = {
    "Describe": (init, validate, schema, route, render, simulate),
    "Run": (up, demo, broker, gateway, relay, publish),
    "Operate": (diff, apply, provision, job, status, ui, verify),
    "Move": (adopt,),
}
# What follows the command that a Job runs belongs to that command.
_SETTINGS: dict[Any, dict[str, bool]] = {job: {"allow_interspersed_args": False}}
for _stage, _verbs in _STAGES.items():
    for _verb in _verbs:
        app.command(rich_help_panel=_stage, context_settings=_SETTINGS.get(_verb))(_verb)
app.add_typer(deadletter.app, name="deadletter", rich_help_panel="Operate")
app.add_typer(outbox.app, name="outbox", rich_help_panel="Operate")
app.add_typer(parked.app, name="parked", rich_help_panel="Operate")
app.add_typer(migrate.app, name="migrate", rich_help_panel="Operate")
app.add_typer(rebalance.app, name="rebalance", rich_help_panel="Move")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out(f"shardctl {version('shardctl')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Sharded, exactly-once database writes over Pub/Sub."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises; only a bug leaves a traceback, in a file."""
    if sys.stderr is None:  # closed by the caller; print would write to stdout, which is for data
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    if sys.stdout is None:
        say("error: stdout is closed, so nothing can be printed. Nothing was done.")
        return EXIT_REFUSED
    with signals.as_interrupts() as received, stdout.checked():
        try:
            code, why = _run(arguments)
        except KeyboardInterrupt:  # a second signal, while the first was reported
            code, why = EXIT_INTERRUPTED, ""
        received.close()
        if received.first and code not in {EXIT_DONE, EXIT_INTERRUPTED}:
            # Python swallows what a signal raises inside a finalizer or a callback: the command went on, and then failed.
            say("interrupted")
            code, why = EXIT_INTERRUPTED, ""
        audit.end(code, why or (received.first if code == EXIT_INTERRUPTED else ""))
    return code


@cache  # building it takes longer than most commands, and a caller in Python may run many
def _command() -> Any:
    return typer.main.get_command(app)


def _run(arguments: list[str] | None) -> tuple[int, str]:
    """The exit code, and the error that ended the command, if one did."""
    try:
        try:
            _refuse_empty(sys.argv[1:] if arguments is None else arguments)
            code = _command()(arguments, prog_name="shardctl", standalone_mode=False)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        code = code if isinstance(code, int) else EXIT_DONE
        if code == EXIT_INTERRUPTED:
            say("interrupted")
    except _CommandLineError as error:
        return _refuse(error), ""
    except ShardctlError as error:
        say(f"error: {error}")
        return error.exit_code, str(error)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED, ""
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is our fault
        _report_bug(error)
        return EXIT_BUG, f"{type(error).__name__}: {error}"
    return code, ""


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise UsageError for an empty word: what a shell makes of a variable that isn't set, as in `--context "$CLUSTER"`.

    Most options would take it for being left out, and mean the current cluster, every shard, or the rebalance that is open.
    """
    for before, word in pairwise(("", *words)):
        name, _, value = (word or before).partition("=")
        is_option = name.startswith("-") and name != "--"
        if not word or (is_option and word.endswith("=") and not value):
            where = name if is_option else "an argument"
            raise UsageError(f"{where}: its value is empty. Was a variable not set? Give one, or leave it out.")


# Click's base of all errors in a command line. Which package has it depends on typer's version.
_CommandLineError: Any = typer.BadParameter.__mro__[2]


def _refuse(error: Any) -> int:
    """Show usage and error as click does, without the secrets of an argument."""
    shown = StringIO()
    error.show(file=shown)
    say(redacted(shown.getvalue()).rstrip("\n"))
    return int(error.exit_code)


def _report_bug(error: Exception) -> None:
    traceback_text = redacted("".join(traceback.format_exception(error)))
    say(redacted(f"bug: {type(error).__name__}: {error}"))
    where = None if os.environ.get("SHARDCTL_DEBUG") == "1" else _bug_file(traceback_text)
    if where is None:
        say(traceback_text.rstrip("\n"))
    say(
        "This is a bug in shardctl, not your mistake. Please report it with the command you ran and "
        f"{where or 'the traceback above'}; look it over first, since it may contain names from your files."
    )


def _bug_file(traceback_text: str) -> str | None:
    """The name of a file that keeps the traceback; None where it can't be written."""
    try:
        with NamedTemporaryFile("w", prefix="shardctl-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"{redacted(str(sys.argv))}\n{sys.version}\n{traceback_text}")
    except OSError:
        return None
    return file.name

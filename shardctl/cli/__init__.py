"""The command line: `main` runs a verb and turns its end into an exit code. Each verb is a plain function in its module.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 refused, 2 usage or invalid file, 3 bug, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from shardctl import audit
from shardctl.cli import deadletter, rebalance
from shardctl.cli.adopt import adopt
from shardctl.cli.broker import broker
from shardctl.cli.diff import diff
from shardctl.cli.gateway import gateway
from shardctl.cli.init import init
from shardctl.cli.local import demo, up
from shardctl.cli.provision import provision
from shardctl.cli.publish import publish
from shardctl.cli.render import render
from shardctl.cli.route import route
from shardctl.cli.schema import schema
from shardctl.cli.simulate import simulate
from shardctl.cli.status import status
from shardctl.cli.ui import ui
from shardctl.cli.validate import validate
from shardctl.cli.verify import verify
from shardctl.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError


def _exit(code: int | None, **_: object) -> None:
    raise typer.Exit(code or EXIT_DONE)


app = typer.Typer(
    name="shardctl",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text starts in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
    result_callback=_exit,
)
for _verb in (
    init,
    adopt,
    validate,
    schema,
    route,
    render,
    diff,
    provision,
    publish,
    verify,
    simulate,
    status,
    ui,
    gateway,
    up,
    demo,
    broker,
):
    app.command()(_verb)
app.add_typer(deadletter.app, name="deadletter")
app.add_typer(rebalance.app, name="rebalance")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"shardctl {version('shardctl')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Sharded, exactly-once database writes over Pub/Sub."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises; only a bug leaves a traceback, in a file."""
    code = _run(arguments)
    for line in audit.end(code):
        if not (sys.stderr.isatty() and os.environ.get(audit.LOG_VARIABLE)):  # a person needn't read what the log has
            print(f"audit: {line}", file=sys.stderr)
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        try:
            app(arguments, prog_name="shardctl")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else EXIT_DONE
            sys.stdout.flush()
            if code == EXIT_INTERRUPTED:
                print("interrupted", file=sys.stderr)
            return code
    except ShardctlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has had enough, as in `| head`. Python flushes again at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is our fault
        _report_bug(error)
        return EXIT_BUG
    return EXIT_DONE


def _report_bug(error: Exception) -> None:
    told = "".join(traceback.format_exception(error))
    print(f"bug: {type(error).__name__}: {error}", file=sys.stderr)
    if os.environ.get("SHARDCTL_DEBUG") == "1":
        print(told, file=sys.stderr, end="")
        where = "the traceback above"
    else:
        with NamedTemporaryFile("w", prefix="shardctl-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"{sys.argv}\n{sys.version}\n{told}")
        where = file.name
    print(
        f"This is a bug in shardctl, not your mistake. Please report it with the command you ran and {where}; "
        "look it over first, since it may hold names from your files.",
        file=sys.stderr,
    )

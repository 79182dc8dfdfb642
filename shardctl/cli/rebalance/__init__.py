"""`shardctl rebalance`: moving slots between the shards of a live fleet. One file a command."""

from __future__ import annotations

import typer

from shardctl.cli.commandlist import CommandList
from shardctl.cli.rebalance.back import back
from shardctl.cli.rebalance.finish import finish
from shardctl.cli.rebalance.go import go
from shardctl.cli.rebalance.plan import plan
from shardctl.cli.rebalance.run import abort, run
from shardctl.cli.rebalance.start import start
from shardctl.cli.rebalance.status import status

app = typer.Typer(
    cls=CommandList,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Move slots between shards while writes continue.",
)
for _verb in (go, plan, start, run, status, abort, back, finish):
    app.command()(_verb)

"""`shardctl migrate`: schema changes over all shards. One file a command."""

from __future__ import annotations

import typer

from shardctl.cli.commandlist import CommandList
from shardctl.cli.migrate.apply import apply
from shardctl.cli.migrate.plan import plan
from shardctl.cli.migrate.status import status
from shardctl.cli.migrate.verify import verify

app = typer.Typer(
    cls=CommandList,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Change the tables of all shards while writes continue.",
)
for _verb in (plan, apply, status, verify):
    app.command()(_verb)

"""`shardctl provision`: topics, subscriptions and tables through their own APIs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from shardctl.cli.pairs import read_pairs
from shardctl.cli.terminal import (
    DEFAULT_FILE,
    NO_CREDENTIALS,
    DryRunOption,
    FileOption,
    JsonOption,
    out,
    print_json,
    say,
    waiting,
)
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

SAID_ROWS = 50_000

DATABASE_HELP = (
    "A shard's database; may be repeated. Else SHARDCTL_DATABASE_URL_<SHARD>, which keeps the password out "
    "of the process list."
)
DatabaseOption = Annotated[list[str] | None, typer.Option("--database", metavar="SHARD=URL", help=DATABASE_HELP)]


def provision(
    file: FileOption = DEFAULT_FILE,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    no_databases: Annotated[bool, typer.Option("--no-databases", help="Only topics and subscriptions.")] = False,
    take_over: Annotated[
        list[str] | None,
        typer.Option(
            "--take-over",
            metavar="FLEET[/SHARD]",
            help="Whose databases become this fleet's: a copy, or those of a fleet that has ended. FLEET stands for each of its "
            "shards, by name; may be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Create the topics, subscriptions and tables that are missing. Safe to run again."""
    from shardctl import audit, lockfile
    from shardctl.fleet.load import load_fleet
    from shardctl.provision import database_urls, refuse_foreign
    from shardctl.shard.takeover import Takeover

    for option, given in (("--database", database), ("--take-over", take_over)):
        if no_databases and given:
            raise UsageError(f"--no-databases and {option} exclude each other.")
    takeover = Takeover.of(take_over or ())
    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    urls = {} if no_databases else database_urls(fleet, given_urls(database or ()), os.environ)
    if not dry_run:
        refuse_foreign(fleet, urls, takeover)
        audit.begin("provision", fleet.fleet, databases=list(urls), **({"take_over": take_over} if take_over else {}))
    steps = []

    def done(step: Any) -> None:
        steps.append(step)
        if not as_json:
            out(str(step))

    _pubsub(fleet, dry_run=dry_run, done=done)
    if no_databases:
        say("databases: skipped, as --no-databases says.")
    elif dry_run:
        say("databases: not checked in a dry run; missing tables are created.")
    else:
        _databases(file, fleet, urls, takeover, done)
    if not dry_run:
        _lock(file, fleet)
    if as_json:
        print_json([{"action": s.action, "kind": s.kind, "name": s.name, "fields": list(s.fields)} for s in steps])
    counts = {action: sum(step.action == action for step in steps) for action in ("create", "update", "identical")}
    say(("Dry run: " if dry_run else "") + ", ".join(f"{count} {action}" for action, count in counts.items()) + ".")
    return EXIT_DONE


@contextmanager
def pubsub_clients(fleet: Any) -> Iterator[tuple[Any, Any]]:
    """A publisher and a subscriber, closed at the end. Raises ShardctlError where there are no credentials."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import pubsub_v1

    try:
        options = {"client_options": {"api_endpoint": fleet.topic.endpoint}} if fleet.topic.endpoint else {}
        publisher, subscriber = pubsub_v1.PublisherClient(**options), pubsub_v1.SubscriberClient(**options)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error
    with publisher, subscriber:
        yield publisher, subscriber


def _pubsub(fleet: Any, *, dry_run: bool, done: Any) -> None:
    from shardctl.provision import provision_pubsub

    with pubsub_clients(fleet) as (publisher, subscriber), waiting(f"Pub/Sub, project {fleet.project}"):
        provision_pubsub(fleet, publisher, subscriber, dry_run=dry_run, done=done)
    if not os.environ.get("PUBSUB_EMULATOR_HOST") and not dry_run:
        say(
            "Pub/Sub's service agent needs roles/pubsub.publisher on the dead-letter topic and roles/pubsub.subscriber "
            "on each subscription; `shardctl render` grants both when project_number is set."
        )


def _databases(file: Path, fleet: Any, urls: dict[str, str], takeover: Any, done: Any) -> None:
    """First all that consumers wait for, in every shard; then what takes as long as there are rows of 0.1.0."""
    from shardctl.migrate import newshard
    from shardctl.provision import make_tables, move_old_rows
    from shardctl.shard.schema import inbox

    behind = []
    for shard in fleet.shards:
        step = make_tables(fleet, shard, urls[shard.name], takeover)
        if inbox.name in step.fields and step.action == "update":
            behind.append(shard.name)
        done(step)
        if step.is_new_database:
            newshard.bring_up(file, fleet, {shard.name: urls[shard.name]})
        for lack in step.lacks:
            say(f"warning: shard {shard.name}: {lack}; until then, consumers of this file wait.")
    if behind:
        say(f"{', '.join(behind)}: deploy consumers of this version now; rows of shardctl 0.1.0 are moved meanwhile.")
    for shard in fleet.shards:
        move_old_rows(fleet, shard, urls[shard.name], _progress(shard.name))


def _progress(shard: str) -> Callable[[str, int], None]:
    reported = 0

    def say_upgraded(table: str, rows: int) -> None:
        nonlocal reported
        if rows - reported >= SAID_ROWS:
            reported = rows
            say(f"shard {shard}: {table} of shardctl 0.1.0: {rows:,} rows moved")

    return say_upgraded


def _lock(file: Any, fleet: Any) -> None:
    """Write the lock; a folder that can't be written only gives a warning, since everything else is done."""
    from shardctl import lockfile

    try:
        lockfile.write(file, fleet)
    except lockfile.GuardError as error:
        say(f"warning: {error}")


def given_urls(options: Any) -> dict[str, str]:
    """Database URLs by shard, from `--database` options."""
    return dict(read_pairs("--database", options, "SHARD=URL, such as s0=postgresql+psycopg://user@host:5432/name"))

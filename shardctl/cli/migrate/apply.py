"""`shardctl migrate apply`: pending revisions on every shard, the canary first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.duration import read_duration
from shardctl.cli.migrate.shards import Schemas, known, pending, refuse, schemas_of
from shardctl.cli.migrate.statements import described, show
from shardctl.cli.provision import DatabaseOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, YesOption, print_json, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

if TYPE_CHECKING:
    from shardctl.migrate.standing import Standing


def apply(
    file: FileOption = DEFAULT_FILE,
    canary: Annotated[
        str,
        typer.Option("--canary", metavar="SHARD", help="Which shard is changed first; by default the file's first."),
    ] = "",
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", min=1, max=64, help="How many of the other shards at once.")
    ] = 4,
    lock_timeout: Annotated[
        str,
        typer.Option(
            "--lock-timeout", metavar="TIME", help="How long a statement waits for a lock, with writers behind it."
        ),
    ] = "2s",
    wait: Annotated[
        str, typer.Option("--wait", metavar="TIME", help="How long a shard is tried again while a lock is held.")
    ] = "2m",
    yes: YesOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Apply what is pending, shard by shard, while others write. Safe to run again, after a kill anywhere."""
    from shardctl import audit
    from shardctl.migrate.run import Patience, Run

    patience = Patience(
        read_duration("--lock-timeout", lock_timeout, "1s", "1m"), read_duration("--wait", wait, "1s", "24h")
    )
    with schemas_of(file, database) as schemas:
        first = schemas.fleet.shard(canary) if canary else schemas.fleet.shards[0]
        standings = known(schemas)
        lacking = pending(schemas, standings)
        listed = described(schemas, standings, lacking)
        refuse(_reasons(schemas, standings, lacking))
        if not as_json:
            show(listed)
        due = bool(lacking or _abandoned(schemas, standings))
        if due and not yes:
            say("Nothing was done. `shardctl migrate apply --yes` does it, while others write.")
            return EXIT_REFUSED
        if due:
            audit.begin("migrate apply", schemas.fleet.fleet, canary=first.name, revisions=lacking)
            tell = Progress(first.name)
            with waiting(tell.what) as moved:
                tell.moved = moved
                Run(schemas.fleet, schemas.history, schemas.engines, patience, tell).apply(first.name, parallel)
    if as_json:
        print_json({"applied": listed})
    _conclude(schemas, lacking, listed)
    return EXIT_DONE


class Progress:
    """Prints each step of each shard; `what` is what was heard last, for a wait that takes long."""

    def __init__(self, canary: str) -> None:
        self._canary, self._last = canary, f"shard {canary}"
        self.moved: Any = lambda: None

    def __call__(self, shard: str, text: str) -> None:
        self._last = f"shard {shard}"
        self.moved()
        say(f"shard {shard}{' (canary)' if shard == self._canary else ''}: {text}")

    def what(self) -> str:
        return f"a schema change; heard last of {self._last}"


def _abandoned(schemas: Schemas, standings: Mapping[str, Standing]) -> bool:
    """Whether a revision was announced whose file is gone; `standing.faults` has refused those that had begun."""
    return any(standing.entries.keys() - set(schemas.history.ids) for standing in standings.values())


def _reasons(schemas: Schemas, standings: Mapping[str, Standing], lacking: Mapping[str, list[str]]) -> list[str]:
    """Why a pending revision must wait, by the file or by the journals. They are read again before anything is changed."""
    from shardctl.migrate.preview import preview, still_mapped

    reasons: dict[str, None] = {}
    for revision in schemas.history.revisions:
        for shard in lacking.get(revision.id, ()):
            seen = preview(revision, schemas.engines[shard].dialect)
            for reason in still_mapped(seen, schemas.fleet.message_types, schemas.engines[shard].dialect):
                reasons[f"revision {revision}: {reason}."] = None
    for shard, standing in standings.items() if lacking else ():
        for text in standing.open_rebalances:
            reasons[f"shard {shard}: {text}"] = None
    return list(reasons)


def _conclude(schemas: Schemas, lacking: Mapping[str, list[str]], listed: list[dict[str, Any]]) -> None:
    if not schemas.history.revisions:
        say(f"there are no revisions in {schemas.history.folder}. `shardctl migrate plan` drafts one from shards.yaml.")
    elif not lacking:
        say(f"nothing is pending: every shard has revision {schemas.history.head}.")
    else:
        after = (
            ""
            if any(revision["contracts"] for revision in listed)
            else " Consumers that write what is new may be deployed now."
        )
        say(f"every shard has revision {schemas.history.head}.{after} `shardctl migrate verify` compares their tables.")

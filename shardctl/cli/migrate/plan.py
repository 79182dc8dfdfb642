"""`shardctl migrate plan`: what the tables lack, and the next revision that gives it to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.migrate.shards import Schemas, known, pending, refuse, schemas_of
from shardctl.cli.migrate.statements import described, show
from shardctl.cli.provision import DatabaseOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, out, print_json, say
from shardctl.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from shardctl.migrate.draft import Draft
    from shardctl.migrate.standing import Standing
    from shardctl.shard.mapped import Lack


def plan(
    file: FileOption = DEFAULT_FILE,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What the draft is called.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the draft; write no file.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compare shards.yaml with the tables, draft a revision in migrations/, and show the SQL of all that is pending."""
    from shardctl.migrate import draft as drafts

    with schemas_of(file, database) as schemas:
        standings = known(schemas)
        lacks = _uncovered(schemas, standings)
        draft = drafts.draft(schemas.fleet, schemas.history, lacks, message)
        by_hand = drafts.by_hand(schemas.fleet, schemas.engines, lacks)
        if draft and not dry_run:
            _write(draft)
        listed = _listed(schemas, standings, draft, file)
    if as_json:
        shown = {"file": str(draft.path), "text": draft.text, "written": not dry_run} if draft else None
        print_json({"draft": shown, "pending": listed, "by_hand": by_hand})
    else:
        _print(draft, listed, by_hand, dry_run=dry_run)
    _conclude(draft, listed, dry_run=dry_run)
    return EXIT_DONE


def _write(draft: Draft) -> None:
    """Raises UsageError where the folder or the file can't be made."""
    from shardctl import atomicfile

    folder = draft.path.parent
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: can't be made: {error.strerror}. --dry-run shows the draft.") from error
    atomicfile.write(draft.path, draft.text.encode())


def _uncovered(schemas: Schemas, standings: Mapping[str, Standing]) -> list[Lack]:
    """What no pending revision adds either. Raises RefusedError where it is unknown what one adds."""
    from shardctl.migrate.preview import preview

    lacks: dict[Lack, None] = {}
    for shard, standing in standings.items():
        previews = [preview(revision, schemas.engines[shard].dialect) for revision in standing.pending(schemas.history)]
        if standing.lacks:
            refuse(
                [
                    f"what a pending revision adds is unknown: {seen.fault}. Apply it first."
                    for seen in previews
                    if seen.fault
                ]
            )
        added = {pair for seen in previews for pair in seen.added}
        uncovered = (lack for lack in standing.lacks if not {(lack.table, lack.column), (lack.table, "")} & added)
        lacks.update(dict.fromkeys(uncovered))
    return list(lacks)


def _listed(
    schemas: Schemas, standings: Mapping[str, Standing], draft: Draft | None, file: Path
) -> list[dict[str, Any]]:
    """The pending revisions, the draft as the last one. It is read from its file, if that was written."""
    from shardctl.migrate import history

    if draft is None or not draft.path.exists():
        return described(schemas, standings, pending(schemas, standings))
    written = Schemas(schemas.fleet, history.read(file), schemas.engines)
    return described(written, standings, pending(written, standings))


def _print(draft: Draft | None, listed: list[dict[str, Any]], by_hand: list[str], *, dry_run: bool) -> None:
    if draft and dry_run:
        out(draft.text)
    show(listed)
    if by_hand:
        out("By hand:")
        out("\n".join(f"- {step}" for step in by_hand))


def _conclude(draft: Draft | None, listed: list[dict[str, Any]], *, dry_run: bool) -> None:
    if draft and dry_run:
        say(f"Dry run: {draft.path} is not written.")
    elif draft:
        say(
            f"{draft.path}: written; look it over and commit it. No table is changed yet. Next: `shardctl migrate apply`."
        )
    elif listed:
        say("Nothing to draft. No table is changed yet. Next: `shardctl migrate apply`.")
    else:
        say("Nothing to draft and nothing pending: every table has the columns that shards.yaml maps.")

"""What the commands on a rebalance share: its file, its databases, Pub/Sub, and the reports of these."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.provision import DATABASE_HELP, given_urls
from shardctl.cli.terminal import say, waiting
from shardctl.errors import EXIT_REFUSED, ShardctlError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.backlog import Backlog
    from shardctl.rebalance.preflight import Known

DatabaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="SHARD=URL",
        help=f"{DATABASE_HELP} Only shards that give or take slots need one.",
    ),
]
MaxLagOption = Annotated[
    int | None,
    typer.Option(
        "--max-lag", metavar="N", min=0, help="Refuse while a shard lags by more messages than this; by default 10,000."
    ),
]


@dataclass(frozen=True, slots=True)
class Work:
    """`databases` are those of the participating shards, by shard."""

    fleet: Fleet
    urls: Mapping[str, str]
    databases: Mapping[str, Engine]

    def known(self) -> dict[str, Known]:
        """What the databases report. Raises PreflightError where one doesn't answer."""
        from shardctl.rebalance import preflight

        with waiting(f"the databases of {', '.join(self.databases)}"):
            known, faults = preflight.look(self.databases)
        if faults:
            raise preflight.PreflightError(faults)
        return known


@contextmanager
def work_on(fleet: Fleet, database: Sequence[str] | None) -> Iterator[Work]:
    """Raises UsageError where the file isn't transitional, ProvisionError where a database's URL is lacking."""
    from shardctl.provision import database_urls
    from shardctl.rebalance import handover, preflight

    if reasons := list(preflight.not_transitional(fleet)):
        raise preflight.PreflightError(reasons)
    taking_part = fleet.model_copy(update={"shards": handover.participating(fleet)})
    urls = database_urls(taking_part, given_urls(database or ()), os.environ, "the others aren't needed")
    with work_with(fleet, urls) as work:
        yield work


@contextmanager
def work_with(fleet: Fleet, urls: Mapping[str, str]) -> Iterator[Work]:
    """On these databases alone, whichever shards they are of."""
    from shardctl.shard import database as databases

    with databases.connected(fleet.fleet, urls) as engines:
        yield Work(fleet, urls, engines)


def backlogs_of(fleet: Fleet, subscriptions: Sequence[str]) -> tuple[Mapping[str, Backlog], str]:
    """The backlogs of the subscriptions, or why they are unknown."""
    from shardctl.rebalance import backlog

    try:
        return (backlog.source(fleet.project)(subscriptions) if subscriptions else {}), ""
    except backlog.UnknownError as error:
        return {}, str(error)


def old_subscriptions(fleet: Fleet) -> list[str]:
    from shardctl.rebalance import handover, preflight

    return [sub.id for shard in handover.participating(fleet) for sub in preflight.old_subscriptions(fleet, shard)]


def lag_reasons(fleet: Fleet, max_lag: int | None) -> list[str]:
    from shardctl.rebalance import preflight

    backlogs, unknown = backlogs_of(fleet, old_subscriptions(fleet))
    if not unknown and (without := preflight.unknown_lag(fleet, backlogs)):
        unknown = f"there is no figure for {', '.join(without)}"
    if unknown:
        say(
            f"lag: unknown, since {unknown}. Check it yourself: a barrier waits behind everything that a shard has yet to write."
        )
    return list(preflight.lagging(fleet, backlogs, preflight.MAX_LAG if max_lag is None else max_lag))


def odd_slots(work: Work, known: Mapping[str, Known], *, announced: bool) -> list[str]:
    """Looks twice: a slot may have changed between the looks at two databases."""
    from shardctl.rebalance import preflight

    reasons = list(preflight.odd_slots(work.fleet, known, announced=announced))
    return reasons and list(preflight.odd_slots(work.fleet, work.known(), announced=announced))


def refuse(reasons: Sequence[str]) -> None:
    from shardctl.rebalance.preflight import PreflightError

    if reasons:
        raise PreflightError(reasons)


def rebalance_of(work: Work, known: Mapping[str, Known]) -> str | None:
    """The id of the file's rebalance; None where no database has opened it. Raises JournalError where they disagree."""
    from shardctl.rebalance import journal

    return journal.id_of(work.fleet, [shard_state.entries for shard_state in known.values()])


def unless_yes(yes: bool, command: str, work: Work, known: Mapping[str, Known]) -> int | None:
    """The exit code of a command without --yes, which only shows its plan; None after recording that its action begins."""
    if yes:
        from shardctl import audit
        from shardctl.rebalance import journal

        audit.begin(
            command.removeprefix("shardctl "),
            work.fleet.fleet,
            rebalance=rebalance_of(work, known),
            shards=journal.describe(work.fleet)["shards"],
        )
        return None
    say(f"Nothing was done. `{command} --yes` does it.")
    return EXIT_REFUSED


def refuse_changed(path: Path, known: Sequence[bytes]) -> None:
    """Raise ShardctlError where the file was written by another since this command began, which may be long ago."""
    if path.read_bytes() not in known:
        raise ShardctlError(
            f"{path} has changed since this command began, so it was not overwritten. See `shardctl rebalance status`; then "
            "run the missing steps again."
        )

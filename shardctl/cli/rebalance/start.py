"""`shardctl rebalance start`: both generations of each changed shard receive from now on. No slot moves yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.provision import pubsub_clients
from shardctl.cli.rebalance.proposal import next_of
from shardctl.cli.rebalance.rollout import next_step
from shardctl.cli.rebalance.work import (
    DatabaseOption,
    MaxLagOption,
    Work,
    lag_reasons,
    odd_slots,
    rebalance_of,
    refuse,
    refuse_changed,
    unless_yes,
    work_on,
)
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, YesOption, out, say, waiting
from shardctl.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet


def start(
    file: FileOption = DEFAULT_FILE,
    following: Annotated[
        Path | None,
        typer.Option("--next", metavar="NEXT", help="What `plan` wrote; by default shards.next.yaml beside the file."),
    ] = None,
    max_lag: MaxLagOption = None,
    yes: YesOption = False,
    database: DatabaseOption = None,
) -> int:
    """Open a planned rebalance, and put the next file in the file's place. Safe to run again."""
    code = open_planned(file, following, max_lag=max_lag, yes=yes, database=database)
    if code == EXIT_DONE:
        say(f"Next: consumers are to read both generations. {next_step(file)} Then `shardctl rebalance run -f {file}`.")
    return code


def open_planned(
    file: Path,
    following: Path | None,
    *,
    max_lag: int | None,
    yes: bool,
    database: Sequence[str] | None,
    tell: Callable[[str], None] = out,
) -> int:
    """What `start` does; `tell` receives its plan and each of its effects. Safe to run again, after a kill anywhere."""
    from shardctl import atomicfile, lockfile
    from shardctl.migrate import newshard
    from shardctl.rebalance import opening, preflight

    before = file.read_bytes() if file.exists() else b""
    wanted, source = planned_fleet(file, following)
    planned = source.read_bytes() if source is not None else before
    with work_on(wanted, database) as work, pubsub_clients(wanted) as (publisher, subscriber):
        known = work.known()
        reasons = [*preflight.other_rebalances(wanted, known)] or [*preflight.past_return(wanted, known)]
        reasons += odd_slots(work, known, announced=False)
        reasons += preflight.unequal_revisions(known)
        reasons += preflight.kept_events(work.databases)
        reasons += preflight.unfit_tables(wanted, work.databases, known)
        with waiting(f"Pub/Sub, project {wanted.project}"):
            reasons += preflight.lacking_subscriptions(wanted, publisher, subscriber, every=False)
            reasons += lag_reasons(wanted, max_lag)
        refuse(reasons)
        tell_opening(work, rebalance_of(work, known), file, source, tell)
        if (end := unless_yes(yes, "shardctl rebalance start", work, known)) is not None:
            return end
        new = opening.make_tables(wanted, work.urls)
        newshard.bring_up(file, wanted, {name: work.urls[name] for name in new})
        known = work.known()
        refuse([*preflight.unequal_revisions(known), *preflight.unfit_tables(wanted, work.databases, known)])
        for doubt in preflight.doubtful_tables(wanted, work.databases, known):
            say(f"warning: {doubt}")
        opening.open_rebalance(wanted, work.databases, publisher, subscriber, done=tell)
    if source is not None:
        refuse_changed(file, (before, planned))
        if file.read_bytes() != planned:  # else another `start` has done it, or one that was killed after this step
            atomicfile.write(before_of(file), before)
            atomicfile.write(file, planned)
        if source.exists() and source.read_bytes() == planned:
            source.unlink(missing_ok=True)
        say(f"{file} now has the content of {source}; {before_of(file)} keeps the previous content.")
    lockfile.write(file, wanted)
    return EXIT_DONE


def before_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}.before{file.suffix}")


def planned_fleet(file: Path, following: Path | None) -> tuple[Fleet, Path | None]:
    """The transitional fleet, and its file unless that is in place already."""
    from shardctl import lockfile
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    path = following or next_of(file)
    if following is None and not path.exists():
        if not fleet.rebalancing:
            raise UsageError(
                f"{path}: there is no such file. `shardctl rebalance plan` writes it; --next names another."
            )
        return fleet, None
    wanted = load_fleet(path)
    if faults := list(lockfile.contradictions(lockfile.lock_of(fleet), wanted)):
        reasons = "\n".join(f"{path}: {fault}" for fault in faults[: lockfile.MAX_TOLD])
        raise lockfile.GuardError(
            f"{reasons}\n{path} doesn't follow from {file}. Plan again: `shardctl rebalance plan -f {file} …`."
        )
    return wanted, path


def tell_opening(
    work: Work, rebalance: str | None, file: Path, source: Path | None, tell: Callable[[str], None]
) -> None:
    """What `start` is going to do."""
    from shardctl.fleet import topology
    from shardctl.rebalance import handover

    fleet = work.fleet
    tell(f"rebalance {rebalance or '(new)'}:")
    for shard in handover.participating(fleet):
        subscriptions = (
            ", ".join(sub.id for sub in topology.subscriptions(fleet, shard)) or "none: it gives all its slots away"
        )
        tell(
            f"  {shard.name}: generation {shard.generation}, {len(shard.slots):,} slots; new subscriptions: {subscriptions}"
        )
    tell(f"  journal in the databases of {', '.join(work.databases)}; no slot changes hands yet")
    if source is not None:
        tell(f"  {source} replaces {file}, which is kept as {before_of(file)}")

"""`shardctl rebalance finish`: deletes what the old generations left, and settles the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.duration import read_duration
from shardctl.cli.provision import pubsub_clients
from shardctl.cli.rebalance.rollout import command_by_hand, next_step
from shardctl.cli.rebalance.work import (
    DatabaseOption,
    Work,
    backlogs_of,
    old_subscriptions,
    rebalance_of,
    refuse,
    refuse_changed,
    unless_yes,
    work_on,
)
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, YesOption, out, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_WAITING

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.backlog import Backlog
    from shardctl.rebalance.preflight import Known


LONGEST, NO_TIME = "365d", timedelta(0)  # of waits
DrainedOption = Annotated[
    bool,
    typer.Option(
        "--drained", help="Where the backlog of old subscriptions is unknown: I have checked, they are empty."
    ),
]


KeepSourceOption = Annotated[
    str,
    typer.Option(
        "--keep-source",
        metavar="TIME",
        help="Do nothing, and stop with exit code 4, until so long after the last slot moved, such as 24h.",
    ),
]


def finish(
    file: FileOption = DEFAULT_FILE,
    drained: DrainedOption = False,
    keep_source: KeepSourceOption = "0s",
    yes: YesOption = False,
    database: DatabaseOption = None,
) -> int:
    """Delete old subscriptions and moved rows once every slot is handed over, and settle the file: the point of no return.

    Safe to run again. Until it runs, `shardctl rebalance back` leads back.
    """
    keep = read_duration("--keep-source", keep_source, "0s", LONGEST)
    code = settle(file, drained=drained, yes=yes, database=database, keep=keep)
    if code == EXIT_DONE:
        say(f"Next: consumers are to read the new generations alone. {next_step(file)}")
    return code


def settle(
    file: Path,
    *,
    drained: bool,
    yes: bool,
    database: Sequence[str] | None,
    keep: timedelta = NO_TIME,
    tell: Callable[[str], None] = out,
) -> int:
    """What `finish` does; `tell` receives its plan and each of its effects."""
    from shardctl import atomicfile, lockfile
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance import closing
    from shardctl.rebalance.planning.edit import settled
    from shardctl.shard.schema import RebalanceState

    fleet = load_fleet(file)
    before = file.read_bytes()
    text = settled(before.decode(), str(file)).encode()
    with work_on(fleet, database) as work, pubsub_clients(fleet) as (publisher, subscriber):
        known = work.known()
        refuse(list(closing.not_handed_over(fleet, known)))
        if reasons := reasons_to_keep(known, keep):
            say(
                f"Nothing was done: {reasons[0]}. Run it again then. Until it runs, `shardctl rebalance back` leads back."
            )
            return EXIT_WAITING
        refuse([*closing.not_deletable(fleet, work.databases, known), *closing.not_published(fleet, work.databases)])
        _verify(work)
        with waiting(f"Pub/Sub, project {fleet.project}"):
            old, strays = _subscriptions(fleet, known, publisher, subscriber, drained=drained)
        _tell_plan(work, known, [*old, *strays], file, tell)
        if (end := unless_yes(yes, "shardctl rebalance finish", work, known)) is not None:
            return end
        closing.begin_finish(fleet, work.databases)
        closing.delete_subscriptions(subscriber, fleet, [*old, *strays], done=tell)
        rows = closing.delete_rows(fleet, work.databases, known, _Deleting())
        say(f"{rows:,} rows deleted.")
        closing.close(fleet, work.databases, RebalanceState.DONE)
    refuse_changed(file, (before, text))
    lockfile.write(file, fleet.settled())  # before the file: killed between, the file still leads to another `finish`
    atomicfile.write(file, text)
    say(f"{file} is settled.")
    _say_left_in_cluster(file, fleet)
    return EXIT_DONE


def reasons_to_keep(known: Mapping[str, Known], keep: timedelta) -> list[str]:
    """One, while what slots left behind at the sources is to stay."""
    from shardctl.rebalance import closing

    until = closing.kept_until(known, keep)
    return [f"the sources keep their copies of moved rows until {until:%Y-%m-%d %H:%M:%S} UTC"] if until else []


def _say_left_in_cluster(file: Path, before: Fleet) -> None:
    """What the cluster still has of the rebalance: all that the file rendered until now and doesn't any more."""
    from shardctl.cluster.manifests import delete_command, no_longer_rendered
    from shardctl.render.kinds import KEPT

    for shard in before.shards:
        if not shard.slots.ranges:
            say(f"shard {shard.name} is gone; its database holds no slots any more.")
    names = [name for name in no_longer_rendered(before, before.settled()) if name.kind not in KEPT]
    if names:
        say(
            f"{len(names)} objects in namespace {before.namespace} are no longer in the file. `{command_by_hand(file)}` "
            f"deletes them. By hand: `{delete_command(names)}`."
        )


def _verify(work: Work) -> None:
    """Check before deleting: every row is where its slot is active, or is a moved row's original."""
    from shardctl.rebalance import handover
    from shardctl.verification.verify import verify

    say("verifying every row of the databases that take part …")
    taking_part = work.fleet.model_copy(update={"shards": handover.participating(work.fleet)})
    faults = [
        (
            f"{fault.shard}: {' '.join(filter(None, (fault.table, str(fault.slots))))}: {fault.what}. {fault.do}",
            fault.of_keys,
        )
        for fault in verify(taking_part, work.databases).faults
    ]
    for text, of_keys in faults:
        if of_keys:  # the rows are where their slots are, whatever their keys say
            say(f"warning: {text}")
    refuse([text for text, of_keys in faults if not of_keys])


def _subscriptions(
    fleet: Fleet, known: dict[str, Known], publisher: Any, subscriber: Any, *, drained: bool
) -> tuple[list[str], list[str]]:
    """Old subscriptions that exist and are drained, and old ones for strays that are empty."""
    from shardctl.rebalance import closing

    strays = closing.old_strays(fleet, publisher)
    old, backlogs, reasons = look_at_old(fleet, known, subscriber, strays, drained=drained)
    refuse(reasons)
    empty = [name for name in strays if name in backlogs and backlogs[name].messages == 0]
    for name in strays:
        if name not in empty:
            say(
                f"subscription {name}, to which strays no longer go, is kept: it may hold some. Check it, then delete it."
            )
    return old, empty


def look_at_old(
    fleet: Fleet, known: Mapping[str, Known], subscriber: Any, strays: Sequence[str] = (), *, drained: bool
) -> tuple[list[str], Mapping[str, Backlog], list[str]]:
    """The old subscriptions that are there, what they and those for strays hold, and why they can't be deleted yet."""
    from shardctl.rebalance import closing

    old = closing.there(subscriber, fleet, old_subscriptions(fleet))
    backlogs, unknown = backlogs_of(fleet, [*old, *strays])
    sure, unsure = closing.not_drained(old, backlogs, closing.last_barrier_us(known), unknown)
    return old, backlogs, [*sure, *([] if drained else unsure)]


def _tell_plan(
    work: Work, known: dict[str, Known], subscriptions: list[str], file: Path, tell: Callable[[str], None]
) -> None:
    from shardctl.rebalance import closing, handover
    from shardctl.rebalance.handover import kinds_of
    from shardctl.rebalance.rows.tables import row_counts
    from shardctl.shard.database import snapshot

    fleet = work.fleet
    tell(f"rebalance {rebalance_of(work, known)}: every slot is where {file} says. To be deleted:")
    for name in subscriptions:
        tell(f"  subscription {name}")
    for shard in handover.participating(fleet):
        slots = closing.left_behind(shard, known[shard.name])
        if slots.ranges:
            with snapshot(work.databases[shard.name]) as connection:
                counts = row_counts(connection, kinds_of(fleet, shard.name))
            tell(f"  {sum(counts[slot] for slot in slots):,} rows of slots {slots} in the database of {shard.name}")
    say("This is the point of no return: once it has begun, nothing leads back but another rebalance, which copies.")
    if subscriptions and fleet.provisioner == "config-connector":
        say(
            "Config Connector makes subscriptions again while their objects are there: run what is named at the end "
            f"soon after, or delete their objects first: `kubectl delete pubsubsubscription -n {fleet.namespace} "
            f"{' '.join(subscriptions)}`."
        )


class _Deleting:
    """Reports now and then how many rows are deleted."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._reported_rows = 0

    def __call__(self, shard: str, rows: int) -> None:
        self._rows[shard] = self._rows.get(shard, 0) + rows
        if sum(self._rows.values()) - self._reported_rows >= 100_000:
            self._reported_rows = sum(self._rows.values())
            say(", ".join(f"{count:,} rows deleted in {name}" for name, count in self._rows.items()))

"""`shardctl apply`: makes the cluster what the file says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.cluster import (
    ContextOption,
    NamespaceOption,
    Site,
    TemplatesOption,
    missing_subscriptions,
    refuse,
    say_unlisted,
    site,
)
from shardctl.cli.duration import read_duration
from shardctl.cli.rebalance.progress import duration
from shardctl.cli.rebalance.rollout import Patience
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, out, print_diff, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

if TYPE_CHECKING:
    from shardctl.cluster.changes import Change
    from shardctl.cluster.surplus import Deletions

LONGEST = "7d"


def apply(
    file: FileOption = DEFAULT_FILE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, by the server's own dry run; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what the file no longer names, as shown.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Whether to look for what the file no longer names.")
    ] = True,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over the fields of the file that others have set.")
    ] = False,
    wait_at_most: Annotated[
        str, typer.Option("--wait-at-most", metavar="TIME", help="Exit 1 when a wait takes longer.")
    ] = "15m",
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    templates: TemplatesOption = None,
) -> int:
    """Apply the manifests in a safe order, wait for the rollouts, then delete what the file no longer names.

    Checks first what must be there. It may be killed anywhere and run again. Exit code 1: refused, or not ready in time.
    """
    from shardctl import audit, lockfile
    from shardctl.cluster.changes import Preview
    from shardctl.cluster.run import Run
    from shardctl.cluster.surplus import Deletions
    from shardctl.fleet.load import load_fleet
    from shardctl.render import warnings

    longest = read_duration("--wait-at-most", wait_at_most, "0s", LONGEST).total_seconds()
    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    for warning in warnings(fleet):
        say(f"warning: {warning}")
    with site(fleet, context, namespace, templates) as there:
        refuse(_missing(there))
        with waiting("the server's dry run of every object"):
            changes = Preview(there.api, there.resources, force=force_conflicts).of(there.manifests)
        refuse([str(change) for change in changes if change.blocked])
        deletions = _deletions(there) if prune else Deletions((), ())
        if dry_run:
            return _show(changes, deletions)
        if deletions.deleted and not yes:
            _show_deletions(deletions)
            say("Nothing was done. `shardctl apply --yes` applies the file and deletes these; --no-prune leaves them.")
            return EXIT_REFUSED
        audit.begin("apply", fleet.fleet, namespace=fleet.namespace, **_counts(changes, deletions))
        run = Run(there.api, fleet, there.resources, Patience(longest), _Progress(), force=force_conflicts)
        run.to_its_end(changes, deletions)
    _say_left(deletions)
    say(f"namespace {fleet.namespace}: as {file} says; {_summary(changes, deletions)}")
    return EXIT_DONE


def _missing(there: Site) -> list[str]:
    """What has to be there before anything is applied, and isn't."""
    from shardctl.cluster import requirements

    with waiting("what has to be there first"):
        known = requirements.check(there.api, there.fleet, there.manifests, there.resources)
    if known.unknown:
        say(
            f"not checked, since you may not read them: Secrets {', '.join(known.unknown)}. A pod waits while one is "
            "missing, and the rollout says so."
        )
    missing, unknown = ([], "") if known.missing else missing_subscriptions(there.fleet)
    if unknown:
        say(f"not known whether the subscriptions are there: {unknown}")
    return [*known.missing, *missing]


def _deletions(there: Site) -> Deletions:
    from shardctl.cluster import requirements

    with waiting("objects that the file doesn't name"):
        unnamed = there.unnamed()
    say_unlisted(unnamed)
    deletions = there.deletions(unnamed)
    refuse(requirements.may_delete(there.api, there.fleet, [entry.id for entry in deletions.deleted], there.resources))
    return deletions


def _show(changes: Sequence[Change], deletions: Deletions) -> int:
    for change in changes:
        if change.action != "identical":
            out(str(change))
            print_diff(change.diff)
    _show_deletions(deletions)
    if any(change.namespace_to_come for change in changes):
        say("The namespace isn't there yet, so the server couldn't check what goes into it.")
    say(f"Dry run: {_summary(changes, deletions)}.")
    return EXIT_DONE


def _show_deletions(deletions: Deletions) -> None:
    for entry in deletions.deleted:
        out(f"delete {entry.id}")
    _say_left(deletions)


def _say_left(deletions: Deletions) -> None:
    for entry, why in deletions.left:
        say(f"left {entry.id}: {why}")
    gone = [entry for entry in deletions.deleted if entry.id.kind == "StatefulSet"]
    for entry in gone:
        say(
            f"left: the disks of {entry.id}, if it has any: `kubectl get pvc -n {entry.id.namespace} -l shard={entry.shard}`"
        )
    if abandoned := [entry.id.name for entry in deletions.deleted if entry.id.kind == "PubSubSubscription"]:
        say(
            "left: in Pub/Sub, where deleting their objects leaves them: `gcloud pubsub subscriptions delete "
            f"{' '.join(abandoned)}`, unless `shardctl rebalance finish` has deleted them"
        )


def _counts(changes: Sequence[Change], deletions: Deletions) -> dict[str, int]:
    counts = Counter(change.action for change in changes)
    actions = {action: counts[action] for action in ("create", "update", "identical") if counts[action]}
    more = {"delete": len(deletions.deleted), "left": len(deletions.left)}
    return {**actions, **{action: count for action, count in more.items() if count}}


def _summary(changes: Sequence[Change], deletions: Deletions) -> str:
    return ", ".join(f"{count:,} {action}" for action, count in _counts(changes, deletions).items())


class _Progress:
    """What `run.Run` reports: effects as data, waits as messages."""

    def done(self, what: str) -> None:
        out(what, flush=True)

    def waits(self, what: str, reasons: Sequence[str], seconds: float) -> None:
        say(f"{what}: waiting, {duration(seconds)} so far:")
        for reason in reasons:
            say(f"  {reason}")

"""`shardctl rebalance back`: the way back of a rebalance that isn't finished, in one command."""

from __future__ import annotations

from shardctl.cli.rebalance.finish import DrainedOption
from shardctl.cli.rebalance.go import (
    ApplyOption,
    ApprovalOption,
    EventsOption,
    GitopsOption,
    HoldOption,
    NoWaitOption,
    WaitAtMostOption,
    go,
)
from shardctl.cli.rebalance.proposal import SlotsOption
from shardctl.cli.rebalance.run import ParallelOption
from shardctl.cli.rebalance.work import DatabaseOption, MaxLagOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption


def back(
    file: FileOption = DEFAULT_FILE,
    slots: SlotsOption = None,
    apply: ApplyOption = "",
    gitops: GitopsOption = None,
    hold: HoldOption = "0s",
    wait_at_most: WaitAtMostOption = "",
    no_wait: NoWaitOption = False,
    drained: DrainedOption = False,
    parallel: ParallelOption = 8,
    max_lag: MaxLagOption = None,
    yes: ApprovalOption = False,
    database: DatabaseOption = None,
    as_json: EventsOption = False,
) -> int:
    """Lead every slot, or some, back to where the rebalance began, until `finish` has run: what `go --back` does.

    The sources still hold the rows, so only what has changed since is copied. It may be killed anywhere, and run again.
    """
    return go(
        file,
        back=True,
        slots=slots,
        apply=apply,
        gitops=gitops,
        hold=hold,
        wait_at_most=wait_at_most,
        no_wait=no_wait,
        drained=drained,
        parallel=parallel,
        max_lag=max_lag,
        yes=yes,
        database=database,
        as_json=as_json,
    )

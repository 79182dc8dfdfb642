"""`shardctl rebalance go`: a rebalance from its plan to its end, in one command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from shardctl.cli.duration import read_duration
from shardctl.cli.provision import given_urls
from shardctl.cli.rebalance.finish import LONGEST, DrainedOption
from shardctl.cli.rebalance.going import Going
from shardctl.cli.rebalance.journey import Journey, Terms
from shardctl.cli.rebalance.proposal import (
    AddOption,
    BackOption,
    ByLoadOption,
    ForwardOption,
    IntoOption,
    LikeOption,
    MinGainOption,
    Options,
    RemoveOption,
    SlotsOption,
    SplitOption,
    ToleranceOption,
    WeightsOption,
    WindowOption,
)
from shardctl.cli.rebalance.rollout import IN_JOB, Patience, rollout_of
from shardctl.cli.rebalance.run import ParallelOption
from shardctl.cli.rebalance.work import DatabaseOption, MaxLagOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_INTERRUPTED, EXIT_WAITING, UsageError

LevelOption = Annotated[bool, typer.Option("--level", help="Level the shards there are, by counts of slots.")]
ApplyOption = Annotated[
    str,
    typer.Option(
        "--apply",
        metavar="COMMAND",
        help="What applies the file on the cluster, run by the shell: 'shardctl apply --yes'; 'none' where somebody else applies "
        "it. `shardctl up` applies its file itself.",
    ),
]
GitopsOption = Annotated[
    Path | None,
    typer.Option(
        "--gitops",
        metavar="DIR",
        help="Write each stage's manifests into this folder, and stop with exit code 4 where a merge is due. Run again, go on "
        "once consumers report that it was applied.",
    ),
]
HoldOption = Annotated[
    str,
    typer.Option(
        "--hold", "--keep-source", metavar="TIME", help="Finish so long after the last slot moved, such as 24h."
    ),
]
WaitAtMostOption = Annotated[
    str, typer.Option("--wait-at-most", metavar="TIME", help="Stop with exit code 4 when a wait takes longer.")
]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Stop with exit code 4 instead of waiting.")]
ApprovalOption = Annotated[
    bool, typer.Option("--yes", help="Do it. Without it, the plan is shown and a person at the terminal asked.")
]
EventsOption = Annotated[bool, typer.Option("--json", help="Print what happens as JSON, one object a line.")]


def go(
    file: FileOption = DEFAULT_FILE,
    add: AddOption = None,
    like: LikeOption = "",
    remove: RemoveOption = None,
    split: SplitOption = "",
    into: IntoOption = "",
    weights: WeightsOption = None,
    by_load: ByLoadOption = False,
    window: WindowOption = "15m",
    back: BackOption = False,
    forward: ForwardOption = False,
    slots: SlotsOption = None,
    level: LevelOption = False,
    tolerance: ToleranceOption = "5%",
    min_gain: MinGainOption = "2%",
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
    """Plan, start, roll out, run and finish in one command. Without a change it continues the rebalance that is open.

    It may be killed anywhere, and run again. Exit code 4: it waits for a rollout, or for the end of --hold; run it again then.
    """
    options = Options(
        add=tuple(add or ()),
        like=like,
        remove=tuple(remove or ()),
        split=split,
        into=into,
        weights=tuple(weights or ()),
        by_load=by_load,
        window=window,
        back=back,
        forward=forward,
        slots=slots,
        level=level,
        tolerance=tolerance,
        min_gain=min_gain,
    )
    _check(options, yes=yes, no_wait=no_wait, wait_at_most=wait_at_most)
    longest = read_duration("--wait-at-most", wait_at_most, "0s", LONGEST).total_seconds() if wait_at_most else None
    terms = Terms(read_duration("--hold", hold, "0s", LONGEST), parallel, max_lag, drained, yes)
    given, rollout, going = given_urls(database or ()), rollout_of(file, apply, gitops), Going(as_json=as_json)
    code = Journey(file, options, given, rollout, Patience(0.0 if no_wait else longest), going, terms).to_its_end()
    if code in {EXIT_WAITING, EXIT_INTERRUPTED}:
        extra = [f"{name}={text}" for name, text in (("--apply", apply), ("--wait-at-most", wait_at_most)) if text]
        extra += [f"--gitops={gitops}"] if gitops else []
        extra += [f"--hold={hold}"] if hold != "0s" else []
        extra += [name for name, given in (("--no-wait", no_wait), ("--drained", drained), ("--yes", yes)) if given]
        say(f"Then continue with {_again(file, extra)}.")
    return code


def _again(file: Path, extra: Sequence[str]) -> str:
    if os.environ.get(IN_JOB):
        return "the same Job"
    return f"`{join(['shardctl', 'rebalance', 'go', '-f', str(file), *extra])}`"


def _check(options: Options, *, yes: bool, no_wait: bool, wait_at_most: str) -> None:
    if options.slots is not None and not options.turns:
        raise UsageError("--slots says which slots go: give it with --back or --forward.")
    if not options.names_a_change and options != Options():
        raise UsageError(
            "these options say how to plan. Name a change too: --add, --remove, --split, --by-load or --level."
        )
    if options.level and (options.add or options.remove or options.split or options.by_load or options.turns):
        raise UsageError("--level is a change of its own; leave it out.")
    if options.split and not options.into and yes:
        raise UsageError(
            "with --yes, --split wants --into NAME: run again after its end, it would split the shard again."
        )
    if no_wait and wait_at_most:
        raise UsageError("--no-wait and --wait-at-most exclude each other.")

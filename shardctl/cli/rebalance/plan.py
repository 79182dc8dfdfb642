"""`shardctl rebalance plan`: which slots to move, and the next `shards.yaml`. Changes nothing but that file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.provision import given_urls
from shardctl.cli.rebalance import report
from shardctl.cli.rebalance.intent import urls_of
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
    next_of,
    propose,
)
from shardctl.cli.rebalance.work import refuse, work_with
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet


OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="NEXT", help="The next file; by default shards.next.yaml, - for stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite any file.")]
DatabaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="SHARD=URL",
        help="A shard's database, to measure in; may be repeated. Else SHARDCTL_DATABASE_URL_<SHARD>.",
    ),
]


def plan(
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
    tolerance: ToleranceOption = "5%",
    min_gain: MinGainOption = "2%",
    output: OutputOption = None,
    force: ForceOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Find the fewest slots to move, and write the next file. Without options: level the present shards."""
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    target = _target(file, output, fleet, force=force, as_json=as_json)
    options = Options(
        tuple(add or ()),
        like,
        tuple(remove or ()),
        split,
        into,
        tuple(weights or ()),
        by_load,
        window,
        back,
        tolerance,
        min_gain,
        forward=forward,
        slots=slots,
    )
    given = given_urls(database or ())
    if options.turns:
        _refuse_past_return(fleet, given)
    proposal = propose(file, fleet, options, given)
    _write(target, proposal.text, proposal.summary, as_json=as_json)
    report.talk(proposal.summary, proposal.request)
    if target is not None:
        following = "" if output is None else f" --next {target}"
        say(f"{target}: written; nothing has moved yet. Next: `shardctl rebalance start -f {file}{following}`.")
    return EXIT_DONE


def _refuse_past_return(fleet: Fleet, given: Mapping[str, str]) -> None:
    """Raise PreflightError where a database that answers says that `finish` has begun. `start` asks all of them."""
    from shardctl.rebalance import preflight

    with work_with(fleet, urls_of(fleet, given)) as work:
        known, _ = preflight.look(work.databases)
    refuse(list(preflight.past_return(fleet, known)))


def _target(file: Path, output: Path | None, fleet: Fleet, *, force: bool, as_json: bool) -> Path | None:
    """The file to write; None for stdout. Raises ShardctlError where that would destroy something else."""
    target = output or next_of(file)
    if str(target) == "-":
        if as_json:
            raise UsageError("--json and -o - both use stdout. Give -o a file.")
        return None
    if not force:
        _refuse_others(target, fleet)
    return target


def _write(target: Path | None, text: str, summary: dict[str, Any], *, as_json: bool) -> None:
    """Write the next file, and show the summary on stdout unless the file goes there."""
    from shardctl import atomicfile

    if target is None:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
        return
    atomicfile.write(target, text.encode())
    if as_json:
        print_json(summary | {"file": str(target)})
    else:
        report.show(summary)


def _refuse_others(target: Path, fleet: Fleet) -> None:
    """Raise unless the file isn't there, or is the next file of an earlier plan for this fleet."""
    from shardctl.fleet.load import load_fleet

    if not target.exists():
        return
    try:
        there = load_fleet(target)
        ours = there.rebalancing and there.fleet == fleet.fleet
    except UsageError:
        ours = False
    if not ours:
        raise ShardctlError(f"{target} exists already and isn't a plan for this fleet. --force overwrites it.")

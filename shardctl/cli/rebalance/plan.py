"""`shardctl rebalance plan`: which slots to move, and the next `shards.yaml`. Changes nothing but that file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.provision import given_urls
from shardctl.cli.rebalance import report
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.planning.plan import Plan
    from shardctl.rebalance.planning.rates import RowsToCopy


AddOption = Annotated[list[str] | None, typer.Option("--add", metavar="S", help="A new shard; may be repeated.")]
LikeOption = Annotated[
    str, typer.Option("--like", metavar="S", help="With --add: the shard whose message types it takes.")
]
RemoveOption = Annotated[
    list[str] | None, typer.Option("--remove", metavar="S", help="A shard to empty; may be repeated.")
]
SplitOption = Annotated[str, typer.Option("--split", metavar="S", help="Halve this shard.")]
IntoOption = Annotated[str, typer.Option("--into", metavar="T", help="With --split: the new half's name.")]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", metavar="S=W", help="A shard's weight, where others have 1; may be repeated."),
]
ByLoadOption = Annotated[
    bool, typer.Option("--by-load", help="Level measured writes, not numbers of slots; alone or with the above.")
]
WindowOption = Annotated[str, typer.Option("--window", metavar="TIME", help="With --by-load: how far back to measure.")]
BackOption = Annotated[
    bool, typer.Option("--back", help="Plan back from an open or aborted rebalance to where it began.")
]
ToleranceOption = Annotated[
    str, typer.Option("--tolerance", metavar="PERCENT", help="How far a shard may be from its share.")
]
MinGainOption = Annotated[
    str, typer.Option("--min-gain", metavar="PERCENT", help="With --by-load: by how much a move must lower a peak.")
]
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
    tolerance: ToleranceOption = "5%",
    min_gain: MinGainOption = "2%",
    output: OutputOption = None,
    force: ForceOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Find the fewest slots to move, and write the next file. Without options: level the present shards."""
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance.planning.edit import edited
    from shardctl.rebalance.planning.plan import plan as planned
    from shardctl.rebalance.planning.request import Request

    fleet = load_fleet(file)
    target = _target(file, output, fleet, force=force, as_json=as_json)
    given = given_urls(database or ())
    request = Request(
        add=tuple(add or ()),
        remove=tuple(remove or ()),
        split=split,
        into=into,
        like=like,
        back=back,
        weights=_weights(weights or ()),
        rates=_rates(fleet, given, _duration(window)) if by_load else None,
        tolerance=_share("--tolerance", tolerance),
        min_gain=_share("--min-gain", min_gain),
    )
    proposal = planned(fleet, request)
    text = edited(file.read_bytes().decode(), proposal.after, str(file))
    summary = report.of_plan(proposal, _rows(fleet, proposal, given))
    _write(target, text, summary, as_json=as_json)
    report.talk(summary, request)
    if target is not None:
        following = "" if output is None else f" --next {target}"
        say(f"{target}: written; nothing has moved yet. Next: `shardctl rebalance start -f {file}{following}`.")
    return EXIT_DONE


def _target(file: Path, output: Path | None, fleet: Fleet, *, force: bool, as_json: bool) -> Path | None:
    """The file to write; None for stdout. Raises ShardctlError where that would destroy something else."""
    target = output or file.with_name(f"{file.stem}.next{file.suffix}")
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


def _weights(options: Sequence[str]) -> dict[str, float]:
    weights = {}
    for option in options:
        name, _, weight = option.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise UsageError(f"--weights wants SHARD=WEIGHT, such as s0=2, and not {option!r}.") from error
    return weights


def _share(option: str, text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{option} wants a percentage, such as 5%, and not {text!r}.") from error


def _duration(text: str) -> timedelta:
    from pydantic import TypeAdapter, ValidationError

    from shardctl.fleet.scalars import Between

    try:
        return TypeAdapter(Annotated[timedelta, Between("1m", "7d")]).validate_python(text)
    except ValidationError as error:
        raise UsageError(f"--window: {error.errors()[0]['ctx']['error']}.") from error


def _rates(fleet: Fleet, given: dict[str, str], window: timedelta) -> dict[int, float]:
    from shardctl.provision import database_urls
    from shardctl.rebalance.planning.rates import measured

    urls = database_urls(fleet, given, os.environ, "without --by-load slots are counted")
    rates = measured(urls.values(), window, datetime.now(UTC))
    say(f"measured {sum(rates.values()):,.1f} writes a second on {len(rates):,} slots.")
    return rates


def _rows(fleet: Fleet, rebalance_plan: Plan, given: dict[str, str]) -> RowsToCopy | None:
    """How many rows are to be copied; None where the databases can't be queried."""
    from shardctl.provision import database_url_variable
    from shardctl.rebalance.planning.rates import rows_to_copy
    from shardctl.shard.database import DatabaseError

    urls = {s.name: given.get(s.name) or os.environ.get(database_url_variable(s), "") for s in fleet.shards}
    if not all(urls[move.source] for move in rebalance_plan.moves):
        return None
    try:
        return rows_to_copy(fleet, rebalance_plan.moves, urls)
    except DatabaseError as error:
        say(f"rows weren't counted: {error}")
        return None

"""`shardctl rebalance plan`: which slots to move, and the next `shards.yaml`. Changes nothing but that file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.provision import given_urls
from shardctl.cli.rebalance import report
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, print_json, say
from shardctl.errors import EXIT_DONE, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.planning.plan import Plan


def plan(
    file: FileOption = DEFAULT_FILE,
    add: Annotated[list[str] | None, typer.Option("--add", metavar="S", help="A new shard; may be repeated.")] = None,
    like: Annotated[
        str, typer.Option("--like", metavar="S", help="With --add: the shard whose message types it takes.")
    ] = "",
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="S", help="A shard to empty; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="S", help="Halve this shard.")] = "",
    into: Annotated[str, typer.Option("--into", metavar="T", help="With --split: the new half's name.")] = "",
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="S=W", help="A shard's part, where others have 1; may be repeated."),
    ] = None,
    by_load: Annotated[
        bool, typer.Option("--by-load", help="Level measured writes, not counts of slots; alone or with the above.")
    ] = False,
    window: Annotated[
        str, typer.Option("--window", metavar="TIME", help="With --by-load: measure so far back.")
    ] = "15m",
    back: Annotated[
        bool, typer.Option("--back", help="From a rebalance that is open or was aborted, back to where it began.")
    ] = False,
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="PERCENT", help="How far a shard may be from its part.")
    ] = "5%",
    min_gain: Annotated[
        str,
        typer.Option("--min-gain", metavar="PERCENT", help="With --by-load: what a move must take off a peak."),
    ] = "2%",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="NEXT", help="The next file; by default shards.next.yaml, - for stdout."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over any file.")] = False,
    database: Annotated[
        list[str] | None,
        typer.Option(
            "--database",
            metavar="SHARD=URL",
            help="A shard's database, to measure in; may be repeated. Else SHARDCTL_DATABASE_URL_<SHARD>.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Find the fewest slots to move, and write the next file. With no option: level the shards there are."""
    from shardctl import atomicfile
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance.planning.edit import edited
    from shardctl.rebalance.planning.plan import plan as planned
    from shardctl.rebalance.planning.request import Request

    fleet = load_fleet(file)
    target = output or file.with_name(f"{file.stem}.next{file.suffix}")
    to_stdout = str(target) == "-"
    if to_stdout and as_json:
        raise UsageError("--json and -o - both want stdout. Give -o a file.")
    if not (to_stdout or force):
        _refuse_others(target, fleet)
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
    found = planned(fleet, request)
    text = edited(file.read_bytes().decode(), found.after, str(file))
    told = report.of_plan(found, _rows(fleet, found, given))
    if to_stdout:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    else:
        atomicfile.write(target, text.encode())
        if as_json:
            print_json(told | {"file": str(target)})
        else:
            report.show(told)
    report.talk(told, request)
    if not to_stdout:
        following = "" if output is None else f" --next {target}"
        say(f"{target}: written; nothing has moved yet. Next: `shardctl rebalance start -f {file}{following}`.")
    return EXIT_DONE


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
        raise ShardctlError(f"{target} is there already and isn't a plan for this fleet. --force writes over it.")


def _weights(options: Sequence[str]) -> dict[str, float]:
    found = {}
    for option in options:
        name, _, weight = option.partition("=")
        try:
            found[name] = float(weight)
        except ValueError as error:
            raise UsageError(f"--weights wants SHARD=WEIGHT, such as s0=2, and not {option!r}.") from error
    return found


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


def _rows(fleet: Fleet, found: Plan, given: dict[str, str]) -> int | None:
    """How many rows are to be copied; None where the databases can't be asked."""
    from shardctl.provision import database_url_variable
    from shardctl.rebalance.planning.rates import rows_to_copy
    from shardctl.shard.database import DatabaseError

    urls = {s.name: given.get(s.name) or os.environ.get(database_url_variable(s), "") for s in fleet.shards}
    if not all(urls[move.source] for move in found.moves):
        return None
    try:
        return rows_to_copy(fleet, found.moves, urls)
    except DatabaseError as error:
        say(f"rows weren't counted: {error}")
        return None

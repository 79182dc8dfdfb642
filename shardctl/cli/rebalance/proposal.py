"""What a rebalance may be asked for on the command line, and the plan that comes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli.duration import read_duration
from shardctl.cli.pairs import read_pairs
from shardctl.cli.rebalance import report
from shardctl.cli.terminal import say
from shardctl.errors import UsageError

if TYPE_CHECKING:
    from shardctl.fleet.keyspace import SlotSet
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.planning.plan import Plan
    from shardctl.rebalance.planning.rates import RowsToCopy
    from shardctl.rebalance.planning.request import Request


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
ForwardOption = Annotated[bool, typer.Option("--forward", help="After --back: plan to where that rebalance led again.")]
SlotsOption = Annotated[
    str | None,
    typer.Option("--slots", metavar="SLOTS", help="On a way back or forward: these slots alone, such as 0-99,105."),
]
ToleranceOption = Annotated[
    str, typer.Option("--tolerance", metavar="PERCENT", help="How far a shard may be from its share.")
]
MinGainOption = Annotated[
    str, typer.Option("--min-gain", metavar="PERCENT", help="With --by-load: by how much a move must lower a peak.")
]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `plan` and `go`, as they were typed."""

    add: Sequence[str] = ()
    like: str = ""
    remove: Sequence[str] = ()
    split: str = ""
    into: str = ""
    weights: Sequence[str] = ()
    by_load: bool = False
    window: str = "15m"
    back: bool = False
    tolerance: str = "5%"
    min_gain: str = "2%"
    level: bool = False  # what `plan` does where no change is named
    forward: bool = False
    slots: str | None = None

    @property
    def turns(self) -> bool:
        return self.back or self.forward

    @property
    def names_a_change(self) -> bool:
        changes = (self.add, self.remove, self.split, self.weights, self.by_load, self.turns, self.level)
        return any(map(bool, changes))

    def request(self, rates: Mapping[int, float] | None = None) -> Request:
        """`rates` are the measured ones, where load is what is levelled. Raises UsageError."""
        from shardctl.rebalance.planning.request import Request

        left_out = Options()
        if not self.by_load and (self.window, self.min_gain) != (left_out.window, left_out.min_gain):
            raise UsageError("--window and --min-gain say how to level by load: give --by-load too.")
        return Request(
            add=tuple(self.add),
            remove=tuple(self.remove),
            split=self.split,
            into=self.into,
            like=self.like,
            back=self.back,
            forward=self.forward,
            slots=_slots(self.slots),
            weights=_weights(self.weights),
            rates=rates,
            tolerance=_share("--tolerance", self.tolerance),
            min_gain=_share("--min-gain", self.min_gain),
        )


@dataclass(frozen=True, slots=True)
class Proposal:
    """`after` is the fleet while slots move, `text` its file, `summary` what `report` shows of the plan."""

    after: Fleet
    text: str
    summary: dict[str, Any]
    request: Request


def propose(file: Path, fleet: Fleet, options: Options, given: dict[str, str]) -> Proposal:
    """Plan what is asked for; `given` are database URLs by shard. Raises UsageError, NothingToMoveError, NoPlanError."""
    from shardctl.rebalance.planning.edit import edited
    from shardctl.rebalance.planning.plan import plan
    from shardctl.rebalance.planning.reasons import why_more

    window = read_duration("--window", options.window, "1m", "7d")
    request = options.request(_rates(fleet, given, window) if options.by_load else None)
    planned = plan(fleet, request)
    text = edited(file.read_bytes().decode(), planned.after, str(file))
    why = why_more(fleet, request, planned.moved) if planned.moved > planned.minimum else ""
    return Proposal(planned.after, text, report.of_plan(planned, _rows(fleet, planned, given), why), request)


def next_of(file: Path) -> Path:
    """Where the plan for `shards.yaml` is written: `shards.next.yaml` beside it."""
    return file.with_name(f"{file.stem}.next{file.suffix}")


def _weights(options: Sequence[str]) -> dict[str, float]:
    weights = {}
    for name, weight in read_pairs("--weights", options, "SHARD=WEIGHT, such as s0=2"):
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise UsageError(f"--weights: {weight!r} is no number. Give SHARD=WEIGHT, such as {name}=2.") from error
    return weights


def _slots(text: str | None) -> SlotSet | None:
    from shardctl.fleet.keyspace import SlotSet

    if text is None:
        return None
    try:
        return SlotSet.parse(text)
    except ValueError as error:
        raise UsageError(f"--slots: {error}") from error


def _share(option: str, text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{option} wants a percentage, such as 5%, and not {text!r}.") from error


def _rates(fleet: Fleet, given: dict[str, str], window: timedelta) -> dict[int, float]:
    from shardctl.provision import database_urls
    from shardctl.rebalance.planning.rates import measured

    urls = database_urls(fleet, given, os.environ, "without --by-load slots are counted")
    rates = measured(fleet.fleet, urls, window, datetime.now(UTC))
    say(f"measured {sum(rates.values()):,.1f} writes a second on {len(rates):,} slots.")
    return rates


def _rows(fleet: Fleet, rebalance_plan: Plan, given: dict[str, str]) -> RowsToCopy | None:
    """How many rows are to be copied; None where the databases can't be queried."""
    from shardctl.fleet.topology import database_url_variable
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

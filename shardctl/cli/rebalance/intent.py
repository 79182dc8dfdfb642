"""Which rebalance `go` is to bring to its end: the one that is open or planned, or a new one. Only looks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardctl.cli.rebalance.proposal import Options, Proposal, next_of, propose
from shardctl.cli.rebalance.start import planned_fleet
from shardctl.cli.rebalance.work import refuse, work_with
from shardctl.errors import UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.preflight import Known


@dataclass(frozen=True, slots=True)
class Intent:
    """`wanted` is the transitional fleet whose rebalance is meant; None where there is none, and `over` says why.

    `proposal` is its plan, where that was made just now. `leaves` is an open rebalance that it leads back from.
    """

    wanted: Fleet | None
    proposal: Proposal | None = None
    leaves: Fleet | None = None
    over: str = ""


def intended(file: Path, options: Options, given: Mapping[str, str]) -> Intent:
    """By the file, the next file, the journals and the options; `given` are database URLs by shard, of any of them.

    Raises UsageError where the options ask for another rebalance than the one that is open, PreflightError where somebody has
    aborted that one, and what planning raises.
    """
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance import preflight

    fleet = load_fleet(file)
    following = _following(file, fleet)
    known = _look(following or fleet, given)
    current = _current(fleet, following, known, options)
    if current is None:
        return _new(file, fleet, options, given, known)
    if options.turns and current is fleet and not _leads_there(fleet, options):
        refuse(list(preflight.past_return(fleet, known)))
        proposal = propose(file, fleet, options, urls_of(fleet, given))
        return Intent(proposal.after, proposal, leaves=_open_one(fleet, known))
    _refuse_another(file, current, options)
    refuse(_aborted(file, current, known))
    if current is following:
        planned_fleet(file, None)  # raises where it doesn't follow from the file
        return Intent(current, leaves=_open_one(fleet, known))
    return Intent(current)


def urls_of(fleet: Fleet, given: Mapping[str, str]) -> dict[str, str]:
    """The URLs of the fleet's databases as far as they are known, by shard."""
    from shardctl.fleet.topology import database_url_variable

    urls = {s.name: given.get(s.name) or os.environ.get(database_url_variable(s), "") for s in fleet.shards}
    return {name: url for name, url in urls.items() if url}


def _following(file: Path, fleet: Fleet) -> Fleet | None:
    """What the next file says; None where there is none, or where it has taken the file's place already."""
    from shardctl.fleet.load import load_fleet

    path = next_of(file)
    if not path.exists():
        return None
    following = load_fleet(path)
    if not (following.rebalancing and following.fleet == fleet.fleet):
        raise UsageError(f"{path} isn't a plan for this fleet. Move it away, and run this again.")
    return None if following == fleet else following


def _look(fleet: Fleet, given: Mapping[str, str]) -> dict[str, Known]:
    with work_with(fleet, urls_of(fleet, given)) as work:
        return work.known()


def _current(fleet: Fleet, following: Fleet | None, known: Mapping[str, Known], options: Options) -> Fleet | None:
    """The rebalance that has begun, or that is planned and nothing else asked for; None where one is to be planned."""
    if following is not None and (_open_one(following, known) or not options.names_a_change):
        return following
    return fleet if fleet.rebalancing else None


def _new(file: Path, fleet: Fleet, options: Options, given: Mapping[str, str], known: Mapping[str, Known]) -> Intent:
    """Of a settled file."""
    from shardctl import lockfile
    from shardctl.rebalance.planning import match
    from shardctl.rebalance.planning.plan import NothingToMoveError

    if not options.names_a_change:
        return Intent(
            None,
            over=f"{file}: no rebalance is open. --add, --remove, --split, --weights, --by-load or --level begins one.",
        )
    entry = match.done(fleet, [database.entries for database in known.values()], options.request())
    if entry is not None:
        return Intent(None, over=f"{file} is what these options ask for, since rebalance {entry.id} was finished.")
    lockfile.check(file, fleet)
    try:
        proposal = propose(file, fleet, options, urls_of(fleet, given))
    except NothingToMoveError as nothing:
        return Intent(None, over=str(nothing))
    return Intent(proposal.after, proposal)


def _refuse_another(file: Path, current: Fleet, options: Options) -> None:
    from shardctl.rebalance.planning import match

    if not options.names_a_change:
        return
    if difference := match.difference(current, options.request(), by_load=options.by_load):
        raise UsageError(
            f"another rebalance of {file} has begun: {difference}. `shardctl rebalance go -f {file}` without these options "
            "continues it; with --back alone it leads back to where that began, with --forward to where it led."
        )


def _leads_there(fleet: Fleet, options: Options) -> bool:
    from shardctl.rebalance.planning import match, way_back

    request = options.request()
    if request.slots is not None:
        way_back.check_slots(fleet, request.slots)
    return match.leads_there(way_back.course_of(fleet), request)


def _open_one(fleet: Fleet, known: Mapping[str, Known]) -> Fleet | None:
    """The fleet, if the rebalance of its file is open in a database."""
    from shardctl.rebalance import journal
    from shardctl.shard.schema import RebalanceState

    if not fleet.rebalancing:
        return None
    entries = [journal.entry_of(fleet, database.entries) for database in known.values()]
    return fleet if any(entry and entry.state == RebalanceState.OPEN for entry in entries) else None


def _aborted(file: Path, fleet: Fleet, known: Mapping[str, Known]) -> list[str]:
    """Somebody wanted no more slots to move: a pipeline that runs this again and again must not overrule that."""
    from shardctl.rebalance import journal
    from shardctl.shard.schema import RebalanceState

    entries = [journal.entry_of(fleet, database.entries) for database in known.values()]
    if not any(entry and (entry.state == RebalanceState.ABORTED or entry.stopping) for entry in entries):
        return []
    way_on = f"`shardctl rebalance start -f {file}` opens it again, and then this continues it"
    way_back = f"`shardctl rebalance go --back -f {file}` leads back to where it began"
    return [f"the rebalance of {file} was aborted. {way_on}; {way_back}."]

"""`shardctl rebalance run` and `abort`: hand over the slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardctl.cli import signals
from shardctl.cli.provision import pubsub_clients
from shardctl.cli.rebalance.progress import ProgressView
from shardctl.cli.rebalance.rollout import next_step
from shardctl.cli.rebalance.work import (
    DatabaseOption,
    MaxLagOption,
    Work,
    backlogs_of,
    lag_reasons,
    odd_slots,
    old_subscriptions,
    rebalance_of,
    refuse,
    unless_yes,
    work_on,
)
from shardctl.cli.terminal import (
    DEFAULT_FILE,
    NO_CREDENTIALS,
    FileOption,
    JsonOption,
    YesOption,
    out,
    print_json,
    say,
    waiting,
)
from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.rebalance.preflight import Known
    from shardctl.rebalance.run import Progress
    from shardctl.rebalance.stats import Stats

MOST_PARALLEL = 12  # each copy takes one of a database's fifteen sessions
LAG_SECONDS = 10.0
Watch = Callable[["Progress", "Stats"], None]

ParallelOption = Annotated[
    int,
    typer.Option("--parallel", metavar="N", min=1, max=MOST_PARALLEL, help="Moved slots in flight at once, at most."),
]


def run(
    file: FileOption = DEFAULT_FILE,
    parallel: ParallelOption = 8,
    max_lag: MaxLagOption = None,
    yes: YesOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Hand over every slot that isn't where the file says. Ctrl-C stops it, and running it again continues."""
    code = hand_over_all(file, parallel=parallel, max_lag=max_lag, yes=yes, database=database, as_json=as_json)
    if code == EXIT_INTERRUPTED:
        say(
            f"stopped. Slots that have begun continue by themselves or wait; `shardctl rebalance run -f {file} --yes` continues."
        )
    if code == EXIT_DONE:
        say(f"every slot is where the file says. Next: `shardctl rebalance finish -f {file}`.")
    return code


def hand_over_all(
    file: Path,
    *,
    parallel: int,
    max_lag: int | None,
    yes: bool,
    database: Sequence[str] | None,
    as_json: bool = False,
    tell: Callable[[str], None] = out,
    watch: Watch = lambda *_: None,
) -> int:
    """What `run` does; `tell` receives its plan and its outcome, `watch` each of its steps."""
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance import preflight

    fleet = load_fleet(file)
    with work_on(fleet, database) as work, pubsub_clients(fleet) as (publisher, subscriber):
        known = work.known()
        refuse([*preflight.not_started(fleet, known), *preflight.other_rebalances(fleet, known)])
        refuse(list(preflight.lacking_tables(known)))
        reasons = odd_slots(work, known, announced=True)
        reasons += preflight.unfit_tables(fleet, work.databases, known)
        with waiting(f"Pub/Sub, project {fleet.project}"):
            reasons += preflight.lacking_subscriptions(fleet, publisher, subscriber, every=True)
        reasons += [f"{reason} {next_step(file)}" for reason in preflight.absent_consumers(fleet, known)]
        reasons += lag_reasons(fleet, max_lag)
        refuse(reasons)
        tell_moves(work, known, say if as_json else tell)
        if (end := unless_yes(yes, "shardctl rebalance run", work, known)) is not None:
            return end
        progress, tally, seconds, interrupted = _drive(work, parallel=parallel, max_lag=max_lag, watch=watch)
    if as_json:
        print_json(_report(progress, tally, seconds))
    else:
        _print(progress, tally, seconds, tell)
    for reason in progress.failed:
        say(f"error: {reason}")
    if interrupted and not progress.ended:
        return EXIT_INTERRUPTED
    if not progress.complete:
        say("not every slot was handed over. Fix what is reported above and run it again: writes of these slots wait.")
        return EXIT_REFUSED
    return EXIT_DONE


def abort(
    file: FileOption = DEFAULT_FILE,
    yes: YesOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> int:
    """Begin no more slots, complete those that have begun, and close the rebalance as it is."""
    code = close_half_done(file, yes=yes, database=database, as_json=as_json)
    if code == EXIT_DONE:
        say(
            f"The file stays as it is. `shardctl rebalance plan --back -f {file}` leads back; "
            f"`shardctl rebalance start -f {file}` continues."
        )
    return code


def close_half_done(
    file: Path,
    *,
    yes: bool,
    database: Sequence[str] | None,
    as_json: bool = False,
    tell: Callable[[str], None] = out,
) -> int:
    """What `abort` does; `tell` receives its plan."""
    from shardctl.fleet.load import load_fleet
    from shardctl.rebalance import closing, journal, opening, preflight
    from shardctl.shard.schema import RebalanceState

    fleet = load_fleet(file)
    with work_on(fleet, database) as work:
        known = work.known()
        entries = [journal.entry_of(fleet, shard_state.entries) for shard_state in known.values()]
        if not any(entry and entry.state == RebalanceState.OPEN for entry in entries):
            refuse([f"the rebalance of {file} isn't open in any database, so there is nothing to abort."])
        refuse([*preflight.past_return(fleet, known), *preflight.lacking_tables(known)])
        refuse(odd_slots(work, known, announced=False))  # those of a start that was killed
        tell = say if as_json else tell
        tell_moves(work, known, tell)
        tell("  slots that wait will not begin; those in flight will be completed")
        if (end := unless_yes(yes, "shardctl rebalance abort", work, known)) is not None:
            return end
        opening.announce(fleet, work.databases)
        closing.stop(fleet, work.databases)
        progress, tally, seconds, interrupted = _drive(work, parallel=MOST_PARALLEL, max_lag=None, onward=False)
        ended = progress.ended and not progress.failed
        if ended:
            closing.close(fleet, work.databases, RebalanceState.ABORTED)
    if as_json:
        print_json({**_report(progress, tally, seconds), "aborted": ended})
    for reason in progress.failed:
        say(f"error: {reason}")
    if not ended:
        say(f"not aborted yet: some slots are between two lanes. `shardctl rebalance abort -f {file} --yes` continues.")
        return EXIT_INTERRUPTED if interrupted else EXIT_REFUSED
    say(
        f"aborted: {progress.arrived:,} slots are where the file says, {progress.waiting:,} where they were, and all are served."
    )
    return EXIT_DONE


def _drive(
    work: Work, *, parallel: int, max_lag: int | None, onward: bool = True, watch: Watch = lambda *_: None
) -> tuple[Progress, Stats, float, bool]:
    from google.auth.exceptions import DefaultCredentialsError

    from shardctl.rebalance import driver

    def tell(progress: Progress, tally: Stats) -> None:
        view.tell(progress, tally)
        watch(progress, tally)

    started = time.monotonic()
    try:
        publisher = driver.BarrierPublisher(work.fleet)
    except DefaultCredentialsError as error:
        raise ShardctlError(NO_CREDENTIALS) from error
    try:
        with _asked_to_end() as interrupted, ProgressView() as view, ThreadPoolExecutor(1) as asking:
            progress, tally = driver.drive(
                work.fleet,
                work.databases,
                publisher,
                parallel=parallel,
                onward=onward,
                hold=_LagGate(work.fleet, max_lag, asking),
                tell=tell,
                interrupted=interrupted,
            )
    finally:
        publisher.close()
    return progress, tally, time.monotonic() - started, interrupted.is_set()


class _LagGate:
    """Why no more slots should begin, while a shard lags too far. Never blocks: a thread asks every ten seconds."""

    def __init__(self, fleet: Fleet, max_lag: int | None, threads: Executor) -> None:
        self._fleet, self._max_lag, self._threads = fleet, max_lag, threads
        self._next, self._why = time.monotonic() + LAG_SECONDS, ""
        self._answer: Future[str] | None = None

    def __call__(self) -> str:
        if self._answer is not None and self._answer.done():
            self._why, self._answer = self._answer.result(), None
        if self._answer is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LAG_SECONDS
            self._answer = self._threads.submit(self._look)
        return self._why

    def _look(self) -> str:
        from shardctl.rebalance import preflight

        backlogs, _ = backlogs_of(self._fleet, old_subscriptions(self._fleet))
        most = preflight.MAX_LAG if self._max_lag is None else self._max_lag
        return next(preflight.lagging(self._fleet, backlogs, most), "")


@contextmanager
def _asked_to_end() -> Iterator[Event]:
    """The first signal requests a stop between two effects; a second one ends at once, which is safe too."""
    asked = Event()
    with signals.noted_by(asked.set):
        yield asked


def tell_moves(work: Work, known: Mapping[str, Known], tell: Callable[[str], None]) -> None:
    """How far a rebalance is, and what is left of it."""
    from shardctl.rebalance.summary import summarize

    summary = summarize(work.fleet, known)
    tell(
        f"rebalance {rebalance_of(work, known)}: {summary.total:,} slots, {summary.stages['arrived']:,} of them handed over"
    )
    tell(f"  {summary.to_flip:,} stay in their database and change generation, without a pause to copy")
    for (source, destination), slots in summary.moves.items():
        tell(f"  {len(slots):,} move from {source} to {destination}: {slots}")


def _report(progress: Progress, tally: Stats, seconds: float) -> dict[str, Any]:
    return {
        "complete": progress.complete,
        "slots": progress.total,
        "handed_over": progress.arrived,
        "failed": list(progress.failed),
        **tally.as_json(),
        "seconds": round(seconds, 3),
    }


def _print(progress: Progress, tally: Stats, seconds: float, tell: Callable[[str], None]) -> None:
    report = tally.as_json()
    tell(
        f"{progress.arrived:,} of {progress.total:,} slots handed over in {seconds:.1f} s: {tally.moved:,} moved, "
        f"{tally.flipped:,} changed generation; {tally.rows:,} rows copied."
    )
    if tally.left_behind:
        tell(
            f"{tally.left_behind:,} slots went back to rows that they had left behind: only what has changed since was copied."
        )
    if pause := report["pause_seconds"]:
        tell(f"pause of a moved slot: p50 {pause['p50']:.3f} s, p99 {pause['p99']:.3f} s, at most {pause['max']:.3f} s")
    if met := report["barrier_seconds"]:
        tell(f"a barrier was met within: p50 {met['p50']:.3f} s, p99 {met['p99']:.3f} s, at most {met['max']:.3f} s")

"""`python -m tests.sim`: many schedules, or one of them event by event."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator

from tests.sim.campaign import Failure, failures, seeds
from tests.sim.rebalance import campaign as moving
from tests.sim.rebalance.executor import Crash
from tests.sim.rebalance.world import play as play_moving
from tests.sim.scenario import Scenario, Trap, every_await, small, two_awaits
from tests.sim.world import Result, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="this schedule alone")
    parser.add_argument("--trace", action="store_true", help="print its events, with the consumer's logs")
    parser.add_argument("--real-store", action="store_true", help="the real store on SQLite instead of its model")
    parser.add_argument(
        "--hand-over", action="store_true", help="a new stream with an old client id has what the old one had"
    )
    parser.add_argument("--sweep", type=int, metavar="SEED", help="cut the small scenario short at every await")
    parser.add_argument("--small", action="store_true", help="with --seed: the small scenario")
    parser.add_argument(
        "--trap", action="append", default=[], metavar="REPLICA:STEP:WHAT:SECONDS:LIFE", help="where to cut it short"
    )
    parser.add_argument("--in-flight-arrives", action="store_true", help="what a killed replica has sent still arrives")
    parser.add_argument("--rebalance", action="store_true", help="schedules in which slots move")
    parser.add_argument("--broken-order", action="store_true", help="with --rebalance: producers break the rules")
    parser.add_argument("--crash", action="append", default=[], metavar="EFFECT:WHEN", help="with --rebalance --small")
    parser.add_argument("--after-crash", default="", metavar="COMMANDS", help="with --crash: what people type then")
    given = parser.parse_args()
    if given.rebalance:
        return _rebalance(given)
    if given.seed is not None:
        return _one(given)
    if given.sweep is not None:
        return _many(failures(_sweep(given.sweep)))
    numbers = range(given.first, given.first + given.schedules)
    return _many(failures(seeds(numbers, real_store=given.real_store, hand_over=given.hand_over)))


def _one(given: argparse.Namespace) -> int:
    if given.small:
        traps = tuple(Trap.read(text) for text in given.trap)
        scenario = small(given.seed, traps, in_flight_dies_with_sender=not given.in_flight_arrives)
    else:
        (scenario,) = seeds([given.seed], real_store=given.real_store, hand_over=given.hand_over)
    return _tell(given, play(scenario, logs=given.trace))


def _rebalance(given: argparse.Namespace) -> int:
    if given.seed is not None:
        scenario = moving.scenario_of(
            given.seed,
            small_one=given.small,
            broken_order=given.broken_order,
            traps=tuple(Trap.read(text) for text in given.trap),
            crashes=tuple(Crash.read(text) for text in given.crash),
            after_crash=tuple(filter(None, given.after_crash.split(","))),
        )
        return _tell(given, play_moving(scenario, logs=given.trace))
    if given.sweep is not None:
        return _many(moving.sweep(given.sweep))
    return _many(moving.seeds(range(given.first, given.first + given.schedules), broken_order=given.broken_order))


def _tell(given: argparse.Namespace, result: Result) -> int:
    if given.trace:
        print(result.oracle.text())
    else:
        print(f"history {result.oracle.digest()}")
    print(f"{result.seconds:.1f} s of virtual time, {sum(result.steps):,} steps", file=sys.stderr)
    for violation in result.violations:
        print(f"VIOLATION: {violation}")
    return 1 if result.violations else 0


def _sweep(seed: int) -> Iterator[Scenario]:
    steps = play(small(seed)).steps
    return itertools.chain(every_await(seed, steps), two_awaits(seed, steps, 1_000))


def _many(failures_found: Iterator[Failure | None]) -> int:
    began, done, failed = time.perf_counter(), 0, 0
    try:
        for failure in failures_found:
            done += 1
            if failure:
                failed += 1
                print(f"{failure.report()}\n")
            if sys.stderr.isatty() and done % 20 == 0:
                rate = done / (time.perf_counter() - began)
                print(f"\r{done:,} schedules, {rate:.0f} a second, {failed} failed", end="", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    rate = done / (time.perf_counter() - began)
    print(f"\r{done:,} schedules, {rate:.0f} a second, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

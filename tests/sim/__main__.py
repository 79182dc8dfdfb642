"""`python -m tests.sim`: many schedules, or one of them told event by event."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator

from tests.sim.campaign import failures, seeds
from tests.sim.scenario import Scenario, Trap, every_await, small, two_awaits
from tests.sim.world import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="this schedule alone")
    parser.add_argument("--trace", action="store_true", help="tell its events, the consumer's logs among them")
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
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given)
    if given.sweep is not None:
        return _many(_sweep(given.sweep))
    numbers = range(given.first, given.first + given.schedules)
    return _many(seeds(numbers, real_store=given.real_store, hand_over=given.hand_over))


def _one(given: argparse.Namespace) -> int:
    if given.small:
        traps = tuple(Trap.read(text) for text in given.trap)
        scenario = small(given.seed, traps, in_flight_dies_with_sender=not given.in_flight_arrives)
    else:
        (scenario,) = seeds([given.seed], real_store=given.real_store, hand_over=given.hand_over)
    result = play(scenario, logs=given.trace)
    if given.trace:
        print(result.oracle.told())
    else:
        print(f"history {result.oracle.digest()}")
    print(f"{result.seconds:.1f} s of virtual time, {sum(result.steps):,} steps", file=sys.stderr)
    for violation in result.violations:
        print(f"VIOLATION: {violation}")
    return 1 if result.violations else 0


def _sweep(seed: int) -> Iterator[Scenario]:
    steps = play(small(seed)).steps
    return itertools.chain(every_await(seed, steps), two_awaits(seed, steps, 1_000))


def _many(scenarios: Iterator[Scenario]) -> int:
    began, done, failed = time.perf_counter(), 0, 0
    try:
        for failure in failures(scenarios):
            done += 1
            if failure:
                failed += 1
                print(f"{failure.told()}\n")
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

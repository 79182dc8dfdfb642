"""`python -m tests.chaos`: hurt a fleet for some minutes, then judge it. Exit 0: no anomaly; 1: some; 2: no such fault."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError
from shardctl.local.fleet import new_folder
from tests.chaos.faults import EVERY_FAULT, FAULTS
from tests.chaos.planted import MISTAKES
from tests.chaos.report import Plan
from tests.chaos.run import run
from tests.chaos.watch import Screen, tell

WRITES_PER_SECOND, WHILE_MOVING = 300.0, 150.0
MOST_SEED = 1_000_000


def main() -> int:
    given = _parser().parse_args()
    seed = random.randrange(MOST_SEED) if given.seed is None else given.seed
    faults = given.faults or tuple(EVERY_FAULT if given.rebalance else FAULTS)
    folder = new_folder(given.dir)
    rate = given.rate or (WHILE_MOVING if given.rebalance else WRITES_PER_SECOND)
    plan = Plan(seed, given.minutes * 60, faults, folder, rate, given.keep, given.rebalance, given.mistake)
    try:
        with Screen() as screen:
            report = run(plan, screen)
    except ShardctlError as error:
        print(f"error: {error}\nlogs: {plan.directory}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; logs: {plan.directory}", file=sys.stderr)
        return EXIT_INTERRUPTED
    tell(report)
    return EXIT_DONE if report.ok else EXIT_REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Hurt a fleet while it works, and see whether a write was lost, doubled, reordered or misplaced.",
        epilog=f"faults: {', '.join(EVERY_FAULT)}",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of writes and faults; without it a random one, which is printed"
    )
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="of faults (default %(default)s)")
    parser.add_argument("--faults", type=_faults, default=(), metavar="NAME,…", help="only these; -NAME: all but these")
    parser.add_argument(
        "--rebalance", action="store_true", help="move slots all the time, and kill and freeze what moves them"
    )
    parser.add_argument(
        "--mistake", choices=tuple(MISTAKES), default="", help="plant it: with --rebalance it has to be found"
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="W",
        help=f"writes a second (default {WRITES_PER_SECOND:g}; with --rebalance {WHILE_MOVING:g})",
    )
    parser.add_argument("--dir", type=Path, default=Path("build/chaos"), help="where runs go (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep databases and logs although all is well")
    return parser


def _faults(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name.removeprefix("-") not in EVERY_FAULT]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(unknown)}; there are: {', '.join(EVERY_FAULT)}")
    wanted = [name for name in names if not name.startswith("-")] or list(EVERY_FAULT)
    return tuple(name for name in EVERY_FAULT if name in wanted and f"-{name}" not in names)


if __name__ == "__main__":
    sys.exit(main())

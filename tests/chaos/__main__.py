"""`python -m tests.chaos`: hurt a fleet for some minutes, then judge it. Exit 0: no anomaly; 1: some; 2: no such fault."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, ShardctlError
from shardctl.local.fleet import new_folder
from tests.chaos.faults import FAULTS
from tests.chaos.run import Plan, run
from tests.chaos.watch import Screen, tell

WRITES_PER_SECOND = 300.0
MOST_SEED = 1_000_000


def main() -> int:
    given = _parser().parse_args()
    seed = random.randrange(MOST_SEED) if given.seed is None else given.seed
    plan = Plan(seed, given.minutes * 60, given.faults, new_folder(given.dir), given.rate, given.keep)
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
        epilog=f"faults: {', '.join(FAULTS)}",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of writes and faults; without it a new one, which is told"
    )
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="of faults (default %(default)s)")
    parser.add_argument(
        "--faults", type=_faults, default=tuple(FAULTS), metavar="NAME,…", help="only these; -NAME: all but these"
    )
    parser.add_argument(
        "--rate", type=float, default=WRITES_PER_SECOND, metavar="W", help="writes a second (default %(default)s)"
    )
    parser.add_argument("--dir", type=Path, default=Path("build/chaos"), help="where runs go (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep databases and logs although all is well")
    return parser


def _faults(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name.removeprefix("-") not in FAULTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    wanted = [name for name in names if not name.startswith("-")] or list(FAULTS)
    return tuple(name for name in FAULTS if name in wanted and f"-{name}" not in names)


if __name__ == "__main__":
    sys.exit(main())

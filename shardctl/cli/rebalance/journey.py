"""A rebalance from its plan to its end, step by step.

Each step looks at the files and the databases, does what is left of it by what its own command does, and waits for what others
have to do. Nothing else is remembered: killed anywhere and run again, a journey finds the step it was at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import typer

from shardctl import atomicfile, audit
from shardctl.cli.rebalance import report
from shardctl.cli.rebalance.finish import settle
from shardctl.cli.rebalance.gitops import say_merge_is_due, write_manifests
from shardctl.cli.rebalance.going import Going
from shardctl.cli.rebalance.intent import Intent, intended
from shardctl.cli.rebalance.proposal import Options, next_of
from shardctl.cli.rebalance.remaining import Remaining, databases_of, old_readers
from shardctl.cli.rebalance.rollout import Patience, Rollout, to_apply
from shardctl.cli.rebalance.run import close_half_done, hand_over_all, tell_moves
from shardctl.cli.rebalance.start import open_planned, planned_fleet, tell_opening
from shardctl.cli.rebalance.work import rebalance_of, work_on
from shardctl.cli.terminal import say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, EXIT_WAITING

MOVES = (
    "This opens the rebalance, moves the slots while writes continue, and then deletes old subscriptions and the copies of moved "
    "rows that the sources keep."
)


@dataclass(frozen=True, slots=True)
class Terms:
    """How the steps are done. `hold` is what lies between the last slot's move and `finish`, at least."""

    hold: timedelta = timedelta(0)
    parallel: int = 8
    max_lag: int | None = None
    drained: bool = False
    yes: bool = False


class Journey:
    """`given` are database URLs by shard.

    The steps stand in order. Each ends the journey with an exit code, or gives None: the next one follows.
    """

    def __init__(
        self,
        file: Path,
        options: Options,
        given: Mapping[str, str],
        rollout: Rollout,
        patience: Patience,
        going: Going,
        terms: Terms,
    ) -> None:
        self._file, self._options, self._given = file, options, given
        self._rollout, self._patience, self._going, self._terms = rollout, patience, going, terms
        self._intent = Intent(None)
        self._approved, self._has_finished = terms.yes, False

    def to_its_end(self) -> int:
        """The exit code."""
        end = self._plan()
        if end is None and self._intent.wanted is not None:
            left = Remaining(self._file, self._intent.wanted, self._urls)
            for step in (self._leave, self._start, self._roll_out, self._run, self._keep, self._finish):
                if (end := step(left)) is not None:
                    break
        if end is None:
            end = self._settle_down()
        return EXIT_DONE if end is None else end

    def _plan(self) -> int | None:
        """Find what is meant, show it, and have it approved. Only then is the next file written."""
        intent = self._intent = intended(self._file, self._options, self._urls())
        if intent.wanted is None:
            say(intent.over)
            return None
        left = Remaining(self._file, intent.wanted, self._urls)
        for name in self._given:
            intent.wanted.shard(name)
        if intent.proposal is None:
            if (end := self._wait_for_databases(left)) is not None:
                return end
            self._show(left)
            return self._approve(MOVES)
        if not self._rollout.local:  # which makes what is lacking when it sees the next file
            with work_on(left.fleet, left.database()):
                pass  # a URL that is lacking would end this on the way
        self._going.shows(intent.proposal.summary)
        report.talk(intent.proposal.summary, intent.proposal.request)
        if (end := self._approve(MOVES)) is not None:
            return end
        atomicfile.write(next_of(self._file), intent.proposal.text.encode())
        return self._wait_for_databases(left)

    def _leave(self, _: Remaining) -> int | None:
        """Close the rebalance that this one leads back from."""
        if (leaves := self._intent.leaves) is None:
            return None
        self._going.begins("abort", "no more slots begin, and what has begun is brought to its end")
        database = databases_of(leaves, self._urls())
        return self._ended("abort", close_half_done(self._file, yes=True, database=database, tell=self._going.tell))

    def _start(self, left: Remaining) -> int | None:
        if not left.to_start():
            return None
        self._going.begins("start", "new subscriptions, tables and journal; the next file takes the file's place")
        code = open_planned(
            self._file, None, max_lag=self._terms.max_lag, yes=True, database=left.database(), tell=self._going.tell
        )
        return self._ended("start", code)

    def _roll_out(self, left: Remaining) -> int | None:
        """Consumers read both generations: reports who applies the file, and waits."""
        if not (missing := left.missing_readers()):
            return None
        self._going.begins("rollout", f"consumers of changed shards are to read both generations{self._who()}")
        if self._rollout.folder is not None:
            return self._merge("rollout", missing, self._rollout.folder)
        if self._rollout.by_hand:
            say(to_apply(self._file))
            if not at_a_terminal():
                say("rollout: no terminal and no --apply, so this stops here. No slot has moved; writes continue.")
                return EXIT_WAITING
        self._apply()
        return self._wait("rollout", left.missing_readers) or self._ended("rollout", EXIT_DONE)

    def _run(self, left: Remaining) -> int | None:
        if not left.to_move():
            return None
        self._going.begins("run", "slots change hands, a few at a time, while writes continue")
        code = hand_over_all(
            self._file,
            parallel=self._terms.parallel,
            max_lag=self._terms.max_lag,
            yes=True,
            database=left.database(),
            tell=self._going.tell,
            watch=self._going.moves,
        )
        return self._ended("run", code)

    def _keep(self, left: Remaining) -> int | None:
        """Leave the moved rows and the old subscriptions where they are for as long as was asked."""
        if not self._terms.hold or not left.kept(self._terms.hold):
            return None
        self._going.begins("hold", f"`finish` comes {self._terms.hold} after the last slot has moved")
        return self._wait("hold", lambda: left.kept(self._terms.hold)) or self._ended("hold", EXIT_DONE)

    def _finish(self, left: Remaining) -> int | None:
        self._going.begins("finish", "old subscriptions and moved rows are deleted, after which nothing leads back")
        if (end := self._wait("finish", lambda: left.undrained(drained=self._terms.drained))) is not None:
            return end
        code = settle(
            self._file, drained=self._terms.drained, yes=True, database=left.database(), tell=self._going.tell
        )
        self._has_finished = code == EXIT_DONE
        return self._ended("finish", code)

    def _settle_down(self) -> int | None:
        """Consumers read the new generations alone. Nothing waits for it: until then they read what is gone, too."""
        if self._rollout.follows or not (self._has_finished or old_readers(self._file, self._urls())):
            return None
        self._going.begins("final rollout", "consumers are to read the new generations alone")
        if self._rollout.folder is not None:
            return self._merge("final rollout", old_readers(self._file, self._urls()), self._rollout.folder)
        if self._rollout.by_hand:
            say(f"{to_apply(self._file)} The rebalance is finished; this alone is left.")
            return EXIT_WAITING
        if (end := self._approve(f"This runs `{self._rollout.command}`.")) is not None:
            return end
        self._apply()
        return self._ended("final rollout", EXIT_DONE)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _urls(self) -> dict[str, str]:
        return {**self._rollout.databases(), **self._given}

    def _who(self) -> str:
        return f": {self._rollout.follows}" if self._rollout.follows else ""

    def _show(self, left: Remaining) -> None:
        """A rebalance that was planned or opened before."""
        with work_on(left.fleet, left.database()) as work:
            known = work.known()
            if left.to_start():
                source = planned_fleet(self._file, None)[1]
                tell_opening(work, rebalance_of(work, known), self._file, source, self._going.tell)
            else:
                tell_moves(work, known, self._going.tell)

    def _approve(self, what: str) -> int | None:
        if self._approved:
            return None
        if not at_a_terminal():
            say("Nothing was done: there is no terminal to ask at. --yes approves what is shown above.")
            return EXIT_USAGE
        say(what)
        if not typer.confirm("Go on?", err=True):
            say("Nothing was done.")
            return EXIT_REFUSED
        self._approved = True
        return None

    def _apply(self) -> None:
        from shardctl.fleet.load import load_fleet

        if self._rollout.command:
            audit.begin("rebalance apply", load_fleet(self._file).fleet, command=self._rollout.command)
            self._rollout.apply()

    def _merge(self, step: str, why: Sequence[str], folder: Path) -> int:
        """Write what is to be merged, and stop: the merge is somebody else's, and may take days."""
        write_manifests(self._file, folder)
        self._going.waits(step, why, 0.0)
        say_merge_is_due(self._file, folder)
        return EXIT_WAITING

    def _wait_for_databases(self, left: Remaining) -> int | None:
        """Of a local fleet; elsewhere they are there, or refused before anything is done."""

        def reasons() -> list[str]:
            return [
                f"{self._rollout.follows}: it is to make the database of {name}" for name in left.missing_databases()
            ]

        return self._wait("plan", reasons) if self._rollout.local else None

    def _wait(self, step: str, reasons: Callable[[], Sequence[str]]) -> int | None:
        in_time = self._patience.until(reasons, lambda why, seconds: self._going.waits(step, why, seconds))
        return None if in_time else EXIT_WAITING

    def _ended(self, step: str, code: int) -> int | None:
        """Each step is an action of its own in the audit log, and ends there where it ends."""
        audit.end(code)
        if code != EXIT_DONE:
            return code
        self._going.ends(step)
        return None


def at_a_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()

"""`shardctl` under fire: each command is killed or frozen at a moment drawn from the seed, and run again until it works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shardctl.local.servers.watchdog import Guard

KILLED, FROZEN = 0.35, 0.15  # how many of the commands
WITHIN_SECONDS = (0.7, 5.0)  # of its beginning; the first second is the interpreter's
ASLEEP_SECONDS = (1.0, 15.0)
RETRY_SECONDS = 1.0
POLL_SECONDS = 0.05
CALM_SECONDS = 240.0  # in which a command must work once all faults are healed
BUG = 3  # the exit code for an error that nobody thought of
SHARDCTL = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())")

Tell = Callable[[str], object]


class HopelessError(Exception):
    """A command doesn't work though nothing is wrong, or has met a bug."""


class Commands:
    """One at a time, but for those that are frozen: they wake up behind whatever was done meanwhile.

    `environment` gives what the commands need, as it is at the time. `command` may be another program that does the same.
    """

    def __init__(
        self,
        folder: Path,
        environment: Callable[[], Mapping[str, str]],
        seed: int,
        tell: Tell,
        command: Sequence[str] = SHARDCTL,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.bugs: list[str] = []
        self._folder, self._environment, self._seed, self._tell = folder, environment, seed, tell
        self._draws: dict[str, random.Random] = {}  # by verb: how often one is tried again changes nothing for another
        self._command = command
        self._frozen: list[tuple[float, subprocess.Popen[bytes], Guard, str]] = []  # until when, who
        self._awake: list[tuple[subprocess.Popen[bytes], Guard, str]] = []
        self._calm_since: float | None = None
        self._number = 0

    def calm_down(self) -> None:
        """From now on nothing is done to a command."""
        self._calm_since = time.monotonic()

    @property
    def calm(self) -> bool:
        return self._calm_since is not None

    def until_done(self, *arguments: str, enough: Callable[[str], bool] = lambda _: False, spared: bool = False) -> str:
        """What the command said when it worked, or when what it said was `enough`. Raises HopelessError.

        `spared`: nothing is done to it, since it does nothing but write a file.
        """
        while True:
            code, output = self.once(*arguments, spared=spared)
            if code == 0 or enough(output):
                return output
            waited = 0.0 if self._calm_since is None else time.monotonic() - self._calm_since
            if code == BUG or waited > CALM_SECONDS:
                raise HopelessError(f"shardctl {' '.join(arguments)}: exit code {code}\n{output}")
            self._sleep(RETRY_SECONDS)

    def once(self, *arguments: str, seconds: float | None = None, spared: bool = False) -> tuple[int | None, str]:
        """Exit code and what was said; None where it was frozen. `seconds`: killed at the latest then."""
        process, guard, log = self._start(arguments)
        draw = self._draws.setdefault(arguments[1], random.Random(f"{self._seed}/{arguments[1]}"))
        fate, at = ("", None) if spared or self.calm else _fate(draw, seconds)
        name = f"shardctl {' '.join(arguments)}"
        began = time.monotonic()
        while process.poll() is None:
            self._wake()
            if at is not None and time.monotonic() - began >= at:
                if fate == "frozen":
                    process.send_signal(signal.SIGSTOP)
                    asleep = draw.uniform(*ASLEEP_SECONDS)
                    self._frozen.append((time.monotonic() + asleep, process, guard, name))
                    self._note(fate, f"{name}: frozen after {at:.1f} s, for {asleep:.1f} s")
                    return None, ""
                process.kill()
                process.wait()
                self._note(fate, f"{name}: killed after {at:.1f} s")
                break
            time.sleep(POLL_SECONDS)
        guard.release()
        output = log.read_text(errors="replace")
        if process.returncode >= 0:
            self._note("ended", f"{name}: exit code {process.returncode} after {time.monotonic() - began:.1f} s")
        if process.returncode == BUG:
            self.bugs.append(f"{name}: {output}")
        return process.returncode, output

    def close(self) -> None:
        """Let those that were frozen go on to their end, and leave nobody behind."""
        self.calm_down()
        self._wake()
        end = time.monotonic() + CALM_SECONDS
        for process, guard, name in self._awake:
            try:
                code = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                self.bugs.append(f"{name}: was woken up and doesn't end")
            else:
                self._note("ended", f"{name}, woken up: exit code {code}")
                if code == BUG:
                    self.bugs.append(f"{name}: woken up, exit code {code}")
            guard.release()
        self._awake.clear()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _start(self, arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], Guard, Path]:
        self._number += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        log = (
            self._folder
            / f"{self._number:03d}-{'-'.join(argument for argument in arguments if argument.isalpha())}.log"
        )
        guard = Guard(signal.SIGKILL)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment()},
                start_new_session=True,
            )
        guard.watch(process.pid)
        return process, guard, log

    def _wake(self) -> None:
        now = time.monotonic()
        for frozen in [frozen for frozen in self._frozen if now >= frozen[0] or self.calm]:
            _, process, guard, name = frozen
            process.send_signal(signal.SIGCONT)
            self._frozen.remove(frozen)
            self._awake.append((process, guard, name))
            self._note("woken", f"{name}: woken up")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._wake()
            time.sleep(POLL_SECONDS)

    def _note(self, what: str, line: str) -> None:
        self.counts[what] += 1
        self._tell(line)


def _fate(draw: random.Random, seconds: float | None) -> tuple[str, float | None]:
    """What is to be done to a command, and when."""
    chance, at = draw.random(), draw.uniform(*WITHIN_SECONDS)
    if chance < KILLED:
        return "killed", at if seconds is None else min(at, seconds)
    if chance < KILLED + FROZEN:
        return "frozen", at
    return "killed", seconds

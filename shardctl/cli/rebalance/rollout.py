"""How what a file says gets to the consumers, and how a command waits for what others do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from shardctl.cli.terminal import say
from shardctl.errors import EXIT_REFUSED, ShardctlError, UsageError

IN_JOB = "SHARDCTL_IN_JOB"  # set in a Job's pod, whose caller has the files, and knows who applies them
NONE = "none"  # what `--apply` says where somebody else applies
LOOK_SECONDS = 1.0
SHOWN_SECONDS, SHOWN_LATER_SECONDS, LATER_SECONDS = 5.0, 60.0, 120.0


class ApplyError(ShardctlError):
    """The command that applies a file has failed."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Rollout:
    """Who applies a file: `command` does, or somebody who `follows` it, or who applies what is merged of `folder`; else a person.

    `databases` are URLs by shard of the local fleet that follows the file.
    """

    command: str = ""
    follows: str = ""
    fleet_file: Path | None = None
    folder: Path | None = None

    @property
    def by_hand(self) -> bool:
        return not (self.command or self.follows or self.folder)

    @property
    def local(self) -> bool:
        return self.fleet_file is not None

    def databases(self) -> dict[str, str]:
        """URLs of the local fleet by shard; of a shard to come too, once it has a database. Raises LocalFileError."""
        from shardctl.status import localfile

        return dict(localfile.read(self.fleet_file).databases) if self.fleet_file else {}

    def apply(self) -> None:
        """Run the command, if there is one. Its output goes to stderr. Raises ApplyError."""
        if not self.command:
            return
        say(f"apply: {self.command}")
        ran = subprocess.run(["/bin/sh", "-c", self.command], stdout=2, check=False)
        if ran.returncode:
            raise ApplyError(
                f"--apply: the command failed with exit code {ran.returncode}; its own message is above. Fix it, and run the "
                "same again: `shardctl rebalance go` continues from here."
            )


def rollout_of(file: Path, apply: str, folder: Path | None = None) -> Rollout:
    """By the options, or by the local fleet of this shell. Raises UsageError, LocalFileError."""
    from shardctl.status import localfile

    if folder is not None:
        if apply:
            raise UsageError("--gitops and --apply exclude each other: what is merged is applied by Argo CD or Flux.")
        return Rollout(folder=folder)
    where = os.environ.get(localfile.VARIABLE)
    fleet_file = Path(where) if where else None
    followed = localfile.read(fleet_file).follows if fleet_file else ""
    if followed and Path(followed) == file.resolve():
        return Rollout("" if apply == NONE else apply, f"`shardctl up` follows {file}", fleet_file)
    if fleet_file and not apply:
        raise UsageError(
            f"{localfile.VARIABLE} names a local fleet that follows {followed or 'no file'}, and not {file}. Give that file "
            f"with -f, or say with --apply who applies {file}."
        )
    if apply == NONE:
        return Rollout(follows=f"somebody else applies {file}, as --apply {NONE} says")
    return Rollout(apply)


def next_step(file: Path) -> str:
    """A sentence: how what the file says gets to the consumers, for a command that doesn't wait for it."""
    from shardctl.status import localfile

    try:
        where = os.environ.get(localfile.VARIABLE)
        followed = localfile.read(Path(where)).follows if where else ""
    except localfile.LocalFileError:
        followed = ""
    if followed and Path(followed) == file.resolve():
        return f"`shardctl up` follows {file}, and needs some seconds."
    return to_apply(file)


def to_apply(file: Path) -> str:
    """A sentence for a person who is to apply the file."""
    if os.environ.get(IN_JOB):
        return f"{file.name} is to be applied where this Job was started: by `shardctl apply`, or by a merge."
    return f"Apply the file: `{command_by_hand(file)}`, which waits until its pods are ready."


def command_by_hand(file: Path) -> str:
    """What a person runs to apply the file on a cluster, and to delete what it no longer names."""
    return f"shardctl apply -f {quote(str(file))} --yes"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a wait may take, in seconds; None for as long as it needs. The clock and the sleep are given."""

    at_most: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, reasons: Callable[[], Sequence[str]], tell: Callable[[Sequence[str], float], None]) -> bool:
        """Look until there is no reason to wait any more; False when it has taken too long.

        `tell` receives the reasons and the seconds so far: at once, when the reasons change, and now and then.
        """
        began, shown_at, shown = self.clock(), 0.0, None
        while why := tuple(reasons()):
            waited = self.clock() - began
            pause = SHOWN_SECONDS if waited < LATER_SECONDS else SHOWN_LATER_SECONDS
            over = self.at_most is not None and waited >= self.at_most
            if why != shown or over or waited - shown_at >= pause:
                tell(why, waited)
                shown, shown_at = why, waited
            if over:
                return False
            self.sleep(LOOK_SECONDS)
        return True

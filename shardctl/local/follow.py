"""Applies changes of the file to a running local fleet, as `kubectl apply` would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardctl.errors import ShardctlError
from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec import Fleet
from shardctl.local import manifests
from shardctl.local.fleet import LocalFleet

Tell = Callable[[str], object]


class Watched:
    """One file, which may be missing. Saving it counts as a change, even with the same content.

    What it holds now is known already, unless it is `new`.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        self._seen = None if new else self._stamp()

    def changed(self) -> bool:
        """Whether it has changed since the last call; never true of a missing file."""
        before, self._seen = self._seen, self._stamp()
        return self._seen is not None and self._seen != before

    def _stamp(self) -> tuple[int, bytes] | None:
        try:
            return self.path.stat().st_mtime_ns, self.path.read_bytes()
        except OSError:
            return None


class Follower:
    """Looks when asked to. `fleet` is what the file said when `local` was made; `folder` takes the manifests.

    A plan beside the file, `shards.next.yaml`, gets databases for its new shards: `shardctl rebalance start` wants them before
    it writes the file, and the file is what brings the rest.
    """

    def __init__(self, local: LocalFleet, file: Path, fleet: Fleet, folder: Path) -> None:
        self._local, self._applied, self._folder = local, fleet, folder
        self._file, self._next = Watched(file), Watched(next_file(file), new=True)

    def look(self, tell: Tell) -> None:
        """Apply what has changed; report what was done, and once what can't be applied."""
        if self._next.changed():
            self._prepare(tell)
        if self._file.changed():
            self._apply(tell)

    def _prepare(self, tell: Tell) -> None:
        try:
            new = self._local.prepare(load_fleet(self._next.path))
        except ShardctlError as error:
            tell(f"{self._next.path} isn't prepared for: {error}")
            return
        if new:
            names = ", ".join(new)
            tell(f"{self._next.path} adds {names}, with databases. In your shell: . {self._local.write_environment()}")

    def _apply(self, tell: Tell) -> None:
        file = self._file.path
        try:
            fleet = load_fleet(file)
            if fleet == self._applied:
                return
            changed = self._local.apply(fleet)
            self._applied = fleet
            manifests.write(fleet, self._folder)
        except ShardctlError as error:
            tell(f"{file} changed and could not be applied: {error}")
            return
        self._local.write_environment()
        tell(f"{file} changed and is applied" + (f": consumers of {', '.join(changed)}" if changed else ""))


def next_file(file: Path) -> Path:
    """Where `shardctl rebalance plan` writes the next version of the file: `shards.next.yaml` beside `shards.yaml`."""
    return file.with_suffix(f".next{file.suffix}")

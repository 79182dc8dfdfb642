"""The fleet's revisions: Python files of Alembic's form in `migrations/` beside `shards.yaml`, in one line without branches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shardctl.errors import UsageError
from shardctl.shard.revisions import ID_LENGTH

FOLDER = "migrations"
_ID = re.compile(rf"[A-Za-z0-9_.-]{{1,{ID_LENGTH}}}")
_ENVIRONMENT = ("env.py", "versions", "alembic.ini")


class RevisionError(UsageError):
    """A revision's file can't be used, or the files make no single line. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Revision:
    id: str
    before: str | None  # the revision that it follows
    title: str
    path: Path

    def __str__(self) -> str:
        return f"{self.id} ({self.title})"


@dataclass(frozen=True, slots=True)
class History:
    """`revisions` in the order in which they are applied."""

    folder: Path
    revisions: tuple[Revision, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(revision.id for revision in self.revisions)

    @property
    def head(self) -> str | None:
        return self.ids[-1] if self.revisions else None


def folder_of(file: Path) -> Path:
    return file.parent / FOLDER


def read(file: Path) -> History:
    """The revisions beside a fleet's file; none where there is no folder. Raises RevisionError.

    It runs each file, as importing it would.
    """
    folder = folder_of(file)
    if not folder.exists():
        return History(folder)
    if not folder.is_dir():
        raise RevisionError(f"{folder}: isn't a folder. Revisions lie in it, one a file: move it out of the way.")
    if strange := [name for name in _ENVIRONMENT if (folder / name).exists()]:
        raise RevisionError(
            f"{folder / strange[0]}: shardctl brings Alembic's environment itself, and reads revisions in {folder} alone. Move "
            f"the revisions' files directly into {folder}, and the rest out of it."
        )
    try:
        paths = sorted(folder.glob("*.py"))
    except OSError as error:
        raise RevisionError(f"{folder}: can't be read: {error.strerror}. Let this user read it.") from error
    return History(folder, tuple(_in_order(folder, [_revision(path) for path in paths])))


def load(path: Path) -> ModuleType:
    """A module of its own from a revision's file, with `upgrade`. Raises RevisionError, which names the line at fault."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        # Compiled here and not imported: one file becomes a module for each shard, and is never taken from a cache.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - it is the user's own code
    except (Exception, SystemExit) as error:
        raise RevisionError(f"{path}{_line_of(error, path)}: {type(error).__name__}: {error}.") from error
    if not callable(getattr(module, "upgrade", None)):
        raise RevisionError(
            f"{path}: has no function `upgrade`. Add one: there a revision of Alembic says what it changes."
        )
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """Where in the file the error arose."""
    number = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            number = trace.tb_lineno
        trace = trace.tb_next
    return f":{number}" if number else ""


def line_of(error: BaseException, revision: Revision) -> str:
    """The revision's file, with the line at which the error arose."""
    return f"{revision.path}{_line_of(error, revision.path)}"


def _revision(path: Path) -> Revision:
    module = load(path)
    name, before = getattr(module, "revision", None), getattr(module, "down_revision", None)
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise RevisionError(
            f"{path}: `revision` is {name!r}. Give it an id of letters, digits, '_', '-' and '.', of at most {ID_LENGTH}."
        )
    if isinstance(before, list | tuple):
        raise RevisionError(
            f"{path}: it merges {', '.join(map(str, before))}. Revisions make one line: give it one predecessor."
        )
    if before is not None and not isinstance(before, str):
        raise RevisionError(f"{path}: `down_revision` is {before!r}. Name the revision that this one follows, or None.")
    title = (module.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Revision(name, before, title or path.stem, path)


def _in_order(folder: Path, revisions: list[Revision]) -> Iterator[Revision]:
    """From the first to the last. Raises RevisionError unless each follows the one before."""
    by_id: dict[str, Revision] = {}
    followers: dict[str | None, Revision] = {}
    for revision in revisions:
        other = by_id.setdefault(revision.id, revision)
        if other is not revision:
            raise RevisionError(
                f"{other.path.name} and {revision.path.name} in {folder} are both revision {revision.id}. Give one of "
                "them another `revision`."
            )
    for revision in revisions:
        if revision.before is not None and revision.before not in by_id:
            raise RevisionError(
                f"{revision.path}: it follows revision {revision.before}, which no file in {folder} is. Bring that file back, or "
                "name another predecessor."
            )
        other = followers.setdefault(revision.before, revision)
        if other is not revision:
            after = "are both the first one" if revision.before is None else f"both follow {revision.before}"
            raise RevisionError(
                f"two heads: {other.path.name} and {revision.path.name} in {folder} {after}. Put them in one line: set "
                f"`down_revision = {other.id!r}` in the one that is to come second."
            )
    current, count = followers.get(None), 0
    while current is not None:
        yield current
        current, count = followers.get(current.id), count + 1
    if count < len(revisions):
        raise RevisionError(
            f"{folder}: its revisions follow each other in a ring. Set `down_revision = None` in the one that is to be the first."
        )

"""Files written whole or not at all: a reader sees the old content or the new, whatever fails."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardctl.errors import EXIT_USAGE, ShardctlError

PRIVATE = 0o600  # the mode of a file that holds a secret
_WRONG_KIND = (errno.ENOTDIR, errno.EISDIR)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


_after_writes: list[Callable[[], None]] = []


class FileError(ShardctlError):
    """A file can't be written; `reason` says why. What was there before is unchanged.

    A path that names a folder as a file, or a file as a folder, is a mistake in the call: `exit_code` says so.
    """

    def __init__(self, path: Path, reason: str, code: int | None = None) -> None:
        super().__init__(f"{path}: can't be written: {reason}. What was there before is unchanged.")
        self.path, self.reason = path, reason
        if code in _WRONG_KIND:
            self.exit_code = EXIT_USAGE


class FileThereError(FileError):
    """The file was to be new, and is there already."""


def write(path: Path, content: bytes, *, new: bool = False, private: bool = False) -> None:
    """Replace the file's content, durable on return. Raises FileError; ShardctlError where only the durability is in doubt.

    A symbolic link stays, and the file that it leads to is replaced. An existing file keeps its mode, and its owner where we may
    give it away. Devices and pipes, such as /dev/stdout, are written to directly. `new` refuses whatever is there, a link too.
    `private` is for secrets: only our user may read the file, whatever the mode of an earlier one.
    """
    target = path if new else Path(os.path.realpath(path))
    try:
        if not new and _is_special(path):
            path.write_bytes(content)
            return
        _replace(target, content, new=new, private=private)
    except FileExistsError as error:
        raise FileThereError(path, "it is there already") from error
    except OSError as error:
        raise FileError(path, error.strerror or str(error), error.errno) from error
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise ShardctlError(f"{path}: written, but a power failure may undo it: {error.strerror}.") from error
    for call in _after_writes:
        call()


@contextmanager
def followed_by(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, `call` after each write, before the writer goes on: for a disk that doesn't outlive the process."""
    _after_writes.append(call)
    try:
        yield
    finally:
        _after_writes.remove(call)


def _is_special(path: Path) -> bool:
    """Whether it is something other than a regular file, which a rename would replace; a folder raises its own error."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _replace(target: Path, content: bytes, *, new: bool, private: bool) -> None:
    """A full disk shows in a file beside the target, in the write or the fsync, before the rename."""
    draft = target.with_name(f".shardctl-{secrets.token_hex(8)}.tmp")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE if private else 0o666)
    except PermissionError as error:
        raise PermissionError(error.errno, f"{error.strerror} to write a file beside it") from error
    try:
        try:
            if not private:
                _keep_mode(target, handle)
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            _link(draft, target)
        else:
            draft.replace(target)
    finally:
        with suppress(OSError):  # it has become the target, or holds nothing of use
            draft.unlink()


def _keep_mode(target: Path, handle: int) -> None:
    try:
        before = target.stat()
    except FileNotFoundError:
        return
    mine = os.fstat(handle)
    if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
        with suppress(PermissionError):
            os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def _link(draft: Path, target: Path) -> None:
    """Link the file instead: a rename would replace one that another process has just made. Raises FileExistsError."""
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError from error
        draft.replace(target)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system whose folders can't be synced
            raise
    finally:
        os.close(handle)

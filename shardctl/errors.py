"""All errors that a user can fix, as one tree. Any other exception is a bug."""

from __future__ import annotations

from shardctl.redaction import redacted

EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, EXIT_BUG, EXIT_WAITING, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


class ShardctlError(Exception):
    """The message says what went wrong, where, and the next step. Ends a command with `exit_code`, never with a traceback.

    Its text may repeat what a driver or a file said, and shows no secret of a URL.
    """

    exit_code = EXIT_REFUSED

    def __str__(self) -> str:
        return redacted(super().__str__())


class UsageError(ShardctlError):
    """The call or the file is invalid: nothing was done."""

    exit_code = EXIT_USAGE

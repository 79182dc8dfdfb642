"""Why a read was refused."""

from __future__ import annotations

from shardctl.errors import ShardctlError


class ReadError(ShardctlError):
    """A read has no answer. Nothing was returned that may be wrong."""


class SlotMovingError(ReadError):
    """The slot is between two databases, and stayed there for longer than the caller waits. Try again."""


class SlotUnknownError(ReadError):
    """No database that the reader has holds the slot: the file, or the mapping of databases, is too old."""

"""Alembic comes with the extra `migrate`: only commands that change schemas need it, and only those load it."""

from __future__ import annotations

from importlib.util import find_spec

from shardctl.errors import UsageError


def require() -> None:
    """Raises UsageError where Alembic isn't installed. Called before anything of `shardctl.migrate` that imports it."""
    if find_spec("alembic") is None:
        raise UsageError("schema changes need Alembic, which isn't installed. Run: pip install 'shardctl[migrate]'")

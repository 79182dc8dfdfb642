"""Why a schema change stops."""

from __future__ import annotations

from shardctl.errors import ShardctlError


class ApplyError(ShardctlError):
    """A revision could not be applied to a shard. What was done stays done."""


class RebalanceOpenError(ApplyError):
    """A rebalance is open in the shard's database: nothing was done."""

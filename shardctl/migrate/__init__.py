"""Schema changes over all shards: revisions of Alembic, one after another in each shard, the canary first."""

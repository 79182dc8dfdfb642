"""A shard's database as both planes reach it."""

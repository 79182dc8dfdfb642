"""Reads for applications: by key, from the database that owns the key's slot, and over all shards. See `docs/reading.md`."""

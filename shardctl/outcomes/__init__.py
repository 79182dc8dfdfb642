"""What became of writes, by the inboxes of the databases that own their slots. See `docs/waiting.md`."""

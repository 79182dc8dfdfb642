"""Moving slots between the shards of a fleet."""

"""What a shard's replicas share in Redis. Nothing waits for it, and no safety rests on it."""

"""The data plane: one process is one replica of one shard."""

"""`shardctl relay`: a process that publishes an application's outbox."""

"""`shardctl ui`: one page that shows what `shardctl status` shows, on this machine, for the holder of its token."""

"""`shardctl ui`: one page that shows what `shardctl status` tells, on this machine, for whoever has its token."""

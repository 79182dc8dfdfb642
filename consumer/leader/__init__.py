"""One replica of a shard leads and writes; the others stand by. A lease says who may try, the database's term who may write."""

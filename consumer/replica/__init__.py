"""One replica of one shard at work: batches, their path, and what runs beside them."""

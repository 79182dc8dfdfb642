"""How long a write must be remembered, played through in days instead of milliseconds.

The real store, purge and dead-letter desk of one shard, on real tables. Pub/Sub brings writes again as late as it may: after a
lost ack, after a seek back to what was acked long ago, as a producer's second copy, as a letter that somebody replays weeks
later. The inbox forgets as early as it may. One seed is one history.
"""

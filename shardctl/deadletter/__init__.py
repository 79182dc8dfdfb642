"""Dead letters: what each was, where it belongs, and how it is replayed exactly once.

A letter is a message on the fleet's dead-letter subscription, or a stray. `letter` and `place` read one, `desk` holds them under
lease, `inboxes` looks them up in the shards' databases and releases them there, `replay` publishes again, `archive` keeps copies.
"""

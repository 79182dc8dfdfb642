"""Sharded, exactly-once database writes over Pub/Sub, with live slot moves: the vocabulary and the control plane."""

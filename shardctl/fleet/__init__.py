"""What `shards.yaml` says: frozen models, the proof that they make a fleet, and every name that follows from them."""

"""The fleet's objects in a cluster: what is live, what applying the file would change, and the run that applies it."""

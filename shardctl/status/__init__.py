"""The state of a running fleet, from its databases, Pub/Sub and its consumers; sources that don't answer are reported."""

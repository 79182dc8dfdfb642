"""How a running fleet stands: asked of its databases, of Pub/Sub and of its consumers; one that doesn't answer is reported."""

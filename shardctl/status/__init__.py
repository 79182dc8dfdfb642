"""How a running fleet stands: asked of its databases, of Pub/Sub and of its consumers; whoever doesn't answer is told of."""

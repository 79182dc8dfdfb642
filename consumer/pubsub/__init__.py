"""The calls of Pub/Sub, their messages, and what a consumer publishes itself."""

"""Writes that an application, or a sink, stores in its own transaction, and the relay that publishes them."""

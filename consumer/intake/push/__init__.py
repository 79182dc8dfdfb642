"""Messages that Pub/Sub pushes: an HTTP endpoint, and an intake that takes the place of streaming pull."""

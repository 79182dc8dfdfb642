"""The HTTP write API: JSON in, one Pub/Sub message a write, an answer once Pub/Sub has it."""

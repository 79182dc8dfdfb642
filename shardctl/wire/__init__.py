"""A write as it travels: message, barrier, JSON lines, and what a dead letter says about itself."""

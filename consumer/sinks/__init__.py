"""Where a consumer writes."""

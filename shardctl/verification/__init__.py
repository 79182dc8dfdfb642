"""Checks that each row is where its slot is active, and gives slots to rows that are older than the fleet."""

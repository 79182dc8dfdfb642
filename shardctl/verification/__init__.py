"""Whether each row lies where its slot is, and slots for rows that were there before the fleet."""

"""Supervision of a long-running process's tasks: restarts, back-off, and reports of trouble."""

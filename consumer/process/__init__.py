"""One replica as a process: its settings, its parts wired together, its start and its end."""

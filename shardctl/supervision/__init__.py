"""What keeps tasks of a long-running process alive: supervised, with back-off, and with its trouble named."""

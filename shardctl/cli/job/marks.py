"""How a Job's log tells data from messages."""

STDOUT_MARK = "> "  # begins each line of stdout; everything else is a message

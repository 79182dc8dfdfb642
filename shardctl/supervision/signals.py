"""The signals that end a process which runs an event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_end_signals(call: Callable[[], object]) -> None:
    """Call instead of ending, on each SIGTERM and SIGINT. Needs a running event loop, on the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, call)

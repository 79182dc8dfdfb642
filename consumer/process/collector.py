"""When Python looks for garbage, in a process that makes its objects in batches.

A message is many objects without cycles, gone once its batch is written. By default Python looks over the living whenever there
are 700 more of them, and from time to time over everything that was ever imported: a fifth of the CPU that a message costs.
"""

from __future__ import annotations

import asyncio
import gc

# More young objects than a usual batch makes; and the older generations seldom.
THRESHOLDS = (100_000, 50, 100)
# Python counts objects and not bytes. What has cycles is few objects that may be large: a call that failed, of gRPC or a driver,
# refers to itself through its traceback, and keeps its request. In an outage there are many.
SWEEP_SECONDS = 10.0


def hold() -> None:
    """Look for nothing while the process starts: what imports and wiring make stays for good."""
    gc.disable()


def release() -> None:
    """The process has started: all that exists now is never looked at again."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()


async def sweep() -> None:
    """Look over all that has been made since the start, from time to time: eight milliseconds while 20,000 messages are held."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        gc.collect()

"""When Python collects garbage, in a process that makes its objects in batches.

A message is many objects without cycles, which are freed once its batch is written. By default Python scans for cycles whenever
there are 700 more objects, and from time to time scans everything that was ever imported: a fifth of the CPU that a message
costs.
"""

from __future__ import annotations

import asyncio
import gc

# More young objects than a usual batch makes; and the older generations seldom.
THRESHOLDS = (100_000, 50, 100)
# Python counts objects, not bytes. Those with cycles are few and may be large: a failed call of gRPC or a driver refers to itself
# through its traceback, and keeps its request. In an outage there are many.
SWEEP_SECONDS = 10.0


def hold() -> None:
    """Collect nothing while the process starts: the objects of imports and wiring stay for good."""
    gc.disable()


def release() -> None:
    """The process has started: no object that exists now is scanned again."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()


async def sweep() -> None:
    """Scan all objects made since the start, every few seconds: eight milliseconds while 20,000 messages are held."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        gc.collect()

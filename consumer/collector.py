"""When Python looks for garbage, in a process that makes its objects in batches.

A message is many objects without cycles, gone once its batch is written. By default Python looks over the living whenever there
are 700 more of them, and from time to time over everything that was ever imported: a fifth of the CPU that a message costs.
"""

from __future__ import annotations

import gc

# More young objects than a usual batch makes; and the older generations seldom. What waits for them is only what has cycles, such
# as an exception with its traceback.
THRESHOLDS = (100_000, 50, 100)


def hold() -> None:
    """Look for nothing while the process starts: what imports and wiring make stays for good."""
    gc.disable()


def release() -> None:
    """The process has started: all that exists now is never looked at again."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()

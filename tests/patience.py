"""How long a test waits for what must come. No test says how fast a machine is: this is only there so that a failure ends.

Judge by what happened. Where a wait can't be avoided, bound it by this and by nothing smaller, so that the suite passes on a
machine whose processors are busy with something else (`make test-loaded`).
"""

PATIENCE_SECONDS = 90.0

"""Runs a command while other processes keep every core busy, and ends with its exit code: `python tests/loaded.py make check`.

No test may depend on how fast the machine is. Each core has two processes that do nothing but compute, so that a test gets a
third of it. They end with this process however it ends, `kill -9` included.
"""

from __future__ import annotations

import os
import subprocess
import sys

BURNERS_A_CORE = 2
# It looks now and then whether its parent is still there: nobody else would end it once that is killed.
BURN = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    sum(range(100_000))
"""


def main(command: list[str]) -> int:
    if not command:
        print("usage: python tests/loaded.py COMMAND [ARGUMENT…]", file=sys.stderr)
        return 2
    burners = [
        subprocess.Popen([sys.executable, "-c", BURN, str(os.getpid())])
        for _ in range(BURNERS_A_CORE * (os.cpu_count() or 1))
    ]
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

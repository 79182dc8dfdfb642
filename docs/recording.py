"""Records docs/session.svg: real commands, run here and now, as a terminal shows them. `make docs` leaves it alone."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS = 118
COMMANDS = (
    "shardctl init --shards 3",
    "shardctl validate",
    "shardctl route customer-42",
    "shardctl render --shard s0 2>/dev/null | grep ^kind | sort | uniq -c",
    "shardctl demo --rebalance --load 200",
)


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "COLUMNS": str(COLUMNS), "HOME": folder},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            )
            console.print(Text(done.stdout.replace(folder, "~").rstrip()))
            console.print()
    svg = console.export_svg(title="shardctl")
    fonts_from_afar = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # what is on this machine will do
    (HERE / "session.svg").write_text(fonts_from_afar.sub("", svg))


if __name__ == "__main__":
    main()

"""A column added to the orders of two SQLite shards that it makes in a temporary folder: plan, apply, verify.

python -m examples.schema_changes
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from shardctl import load_fleet
from shardctl.cli import main as shardctl
from shardctl.provision import provision_database

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, amount: bigint}}
shards:
  - {name: s0, slots: 0-511}
  - {name: s1, slots: 512-1023}
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "shards.yaml").write_text(FILE)
        urls = {name: f"sqlite:///{folder}/{name}.db" for name in ("s0", "s1")}
        for shard in load_fleet(file).shards:
            provision_database(load_fleet(file), shard, urls[shard.name])

        file.write_text(FILE.replace("amount: bigint", "amount: bigint, note: text"))
        databases = ["-f", str(file), *(f"--database={name}={url}" for name, url in urls.items())]
        for command in (["plan", "-m", "Notes on orders"], ["apply", "--yes"], ["status"], ["verify"]):
            print(f"\n$ shardctl migrate {' '.join(command)}", flush=True)
            if code := shardctl(["migrate", *command, *databases]):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())

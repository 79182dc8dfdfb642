"""What tests of schema changes share: a fleet of two shards in a folder, and revisions written into it."""

from __future__ import annotations

from pathlib import Path

from shardctl.fleet.load import load_fleet
from shardctl.migrate import history
from shardctl.migrate.run import Patience, Run
from shardctl.provision import make_tables
from shardctl.shard import database

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, amount: bigint%s}}
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""


def revision_text(name: str, before: str | None, *operations: str, title: str = "Change") -> str:
    body = "\n    ".join(operations or ("pass",))
    return (
        f'"""{title}."""\nimport sqlalchemy as sa\nfrom alembic import op\n\nrevision = {name!r}\ndown_revision = {before!r}\n\n'
        f"def upgrade():\n    {body}\n"
    )


class Shop:
    """The fleet with its databases. `close()` it."""

    def __init__(self, folder: Path, urls: dict[str, str]) -> None:
        self.file, self.urls = folder / "shards.yaml", urls
        self.map()
        for shard in self.fleet.shards:
            make_tables(self.fleet, shard, urls[shard.name])
        self.engines = {name: database.connect(url) for name, url in urls.items()}

    def map(self, columns: str = "") -> None:
        """Let `orders` have more columns in the file, such as `, note: text`."""
        self.file.write_text(FILE % columns)
        self.fleet = load_fleet(self.file)

    def add(self, *operations: str, title: str = "Change") -> str:
        """The next revision; its id."""
        line = self.history
        name = f"r{len(line.revisions) + 1}"
        line.folder.mkdir(exist_ok=True)
        (line.folder / f"{name}.py").write_text(revision_text(name, line.head, *operations, title=title))
        return name

    @property
    def history(self) -> history.History:
        return history.read(self.file)

    def apply(self, patience: Patience | None = None, tell=lambda *_: None, engines=None) -> None:
        run = Run(self.fleet, self.history, engines or self.engines, patience or Patience(), tell)
        run.apply("s0", parallel=2)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()

"""What one thread reads of the lanes must not become another's."""

from types import SimpleNamespace

from consumer.database.dialects import SQLite
from consumer.store.fence import Fence


class Result(list):
    def first(self):
        return tuple(self)


class Connection:
    """A database whose fence has `version` and whose `slots` are active. `meanwhile` happens before the lanes are answered."""

    dialect = SimpleNamespace(has_table=lambda *_: False)  # for rows of 0.1.0

    def __init__(self, version, slots, meanwhile=lambda: None):
        self.version, self.slots, self.meanwhile = version, slots, meanwhile

    def exec_driver_sql(self, _):
        return Result([self.version])

    def execute(self, query):
        self.meanwhile()
        names = [column.name for column in query.selected_columns]
        rows = [{"slot": slot, "generation": 1, "state": "active"} for slot in self.slots]
        return [tuple(row.get(name) for name in names) for row in rows]


def test_a_thread_that_was_held_up_doesnt_pass_its_old_lanes_on():
    """Thread A reads version 1's lanes and is held up; B has read version 2; A's late note must not become B's answer."""
    fence = Fence(SQLite())
    late = Connection(1, [5], meanwhile=lambda: fence.share(Connection(2, [6])))
    assert fence.share(late).active_slots == {5}
    assert fence.share(Connection(2, [6])).active_slots == {6}

"""A fleet of two shards on SQLite, and HTTP servers that answer as a test says."""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs

from fleets import fleet
from sqlalchemy import insert, update

from shardctl.provision import provision_database
from shardctl.rebalance import journal
from shardctl.rebalance.backlog import Backlog
from shardctl.shard import schema
from shardctl.shard.database import connect, writing
from shardctl.shard.schema import LaneState
from shardctl.status.report import Work
from shardctl.wire import identity

BITS = 4
AFTER = (
    ["slots: 0-5", "generation: 2", "previous: [{generation: 1, slots: 0-7}]"],
    ["slots: 8-15"],
    ["slots: 6-7", "previous: []"],
)
WORKING = Work(applied=10, duplicates=1, dead_lettered=0, writes_per_second=2.0, replicas=2, ready=2)


def settled():
    return fleet(("0-7", "8-15"), slot_bits=BITS)


def transitional():
    """s0 gives 6 and 7 to the new s2."""
    return fleet(AFTER, slot_bits=BITS)


def backlogs(fleet, **given):
    """Nothing waits in any subscription of the fleet, but for `given`."""
    from shardctl.status.report import subscription_ids

    empty = {name: Backlog(0, None, 1_000_000_000) for name in subscription_ids(fleet)}
    return empty | {name.replace("_", "-"): backlog for name, backlog in given.items()}


@cache
def _provisioned():
    """Made once: making them again takes most of a test's time."""
    folder, fleet = TemporaryDirectory(prefix="shardctl-test-"), settled()
    for shard in fleet.shards:
        provision_database(fleet, shard, f"sqlite:///{folder.name}/{shard.name}.db")
    return folder


class Databases:
    """Each shard's, as provisioned for the settled fleet."""

    def __init__(self, folder) -> None:
        fleet = settled()
        self.fleet, self.urls = fleet, {shard.name: f"sqlite:///{folder / shard.name}.db" for shard in fleet.shards}
        shutil.copytree(_provisioned().name, folder, dirs_exist_ok=True)

    def add(self, name, fleet) -> None:
        folder = self.urls["s0"].removesuffix("s0.db")
        self.urls[name] = f"{folder}{name}.db"
        provision_database(fleet, fleet.shard(name), self.urls[name])

    def execute(self, shard, *statements) -> None:
        engine = connect(self.urls[shard])
        with writing(engine) as connection:
            for statement in statements:
                connection.execute(statement)
        engine.dispose()

    def open_rebalance(self, fleet) -> None:
        rebalance = None
        for shard in fleet.shards:
            if shard.previous is not None:
                engine = connect(self.urls[shard.name])
                with writing(engine) as connection:
                    rebalance = journal.begin(connection, fleet, shard.name, rebalance)
                engine.dispose()

    def lane(self, shard, slot, state, generation=1) -> None:
        self.execute(shard, insert(schema.lanes).values(slot=slot, generation=generation, state=state))

    def leave(self, shard, *slots) -> None:
        table = schema.lanes
        change = update(table).where(table.c.slot.in_(slots)).values(state=LaneState.LEFT, barrier_time_us=1)
        self.execute(shard, change, update(schema.fence).values(version=schema.fence.c.version + 1))

    def present(self, shard, replica="r0", generations="1", **values) -> None:
        self.execute(shard, insert(schema.replicas).values(replica=replica, generations=generations, **values))

    def park(self, shard, slot, key, messages=1) -> None:
        row = {
            "slot": slot, "message_type": "a", "partition_key": key, "reason": "bad_value", "detail": "no number",
            "released": False,
        }  # fmt: skip
        self.execute(shard, insert(schema.parked_keys).values(row))
        for number in range(messages):
            self.park_message(shard, slot, key, f"{key}-{number}")

    def park_message(self, shard, slot, key, idempotency_key) -> None:
        row = {
            "slot": slot, "partition_key": key, "message_type": "a", "operation": "upsert", "message_id": "1",
            "idempotency_key": idempotency_key, "identity": identity.of_key("", "a", idempotency_key),
            "publish_time_us": 1, "attributes": "{}", "body": b'{"id": "<b>"}',
        }  # fmt: skip
        self.execute(shard, insert(schema.parked).values(row))


@contextmanager
def http_server(answer):
    """`answer(method, path, headers, form)` gives status and body; the server's URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            length = int(self.headers.get("Content-Length", 0))
            form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
            status, body = answer(self.command, self.path, self.headers, form)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer  # noqa: N815 - as the base class calls them

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

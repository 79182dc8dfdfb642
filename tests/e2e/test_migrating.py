"""docs/migrating.md, done: three databases chosen by `user_id % 3` become a fleet while writers go on; then there are four."""

import json
import random
import subprocess
import threading
import time
from collections import Counter

import psycopg
import pytest
from patience import PATIENCE_SECONDS

from shardctl.fleet.keyspace import SlotRule
from shardctl.fleet.load import load_fleet
from shardctl.local.servers.process import wait_until
from shardctl.publisher import Publisher
from shardctl.wire.message import Write
from tests.e2e.test_rebalance_local import SHARDCTL, Terminals

pytestmark = pytest.mark.proof

USERS, OLD = 200, 3
FEW = SlotRule(5, OLD)


class OldWriter(threading.Thread):
    """A pod as it was: it counts users' visits in database `user_id % 3`, and knows of no slots."""

    def __init__(self, databases: dict[str, str]) -> None:
        super().__init__()
        self.visits: Counter[int] = Counter()
        self._databases = [databases[f"s{remainder}"].replace("+psycopg", "") for remainder in range(OLD)]
        self._draw, self._ended = random.Random(7), threading.Event()

    def run(self) -> None:
        connections = [psycopg.connect(url, autocommit=True) for url in self._databases]
        while not self._ended.is_set():
            user = self._draw.randrange(USERS)
            connections[user % OLD].execute(
                "INSERT INTO users (user_id, visits, revision) VALUES (%s, 1, 1) "
                "ON CONFLICT (user_id) DO UPDATE SET visits = users.visits + 1, revision = users.revision + 1",
                (user,),
            )
            self.visits[user] += 1
            time.sleep(0.001)
        for connection in connections:
            connection.close()

    def stop(self) -> None:
        self._ended.set()
        self.join()


@pytest.fixture
def terminals(tmp_path):
    command = ["init", "--from-modulo", str(OLD), "--key", "user_id", "--table", "users"]
    subprocess.run([*SHARDCTL, *command], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "shards.yaml").read_text().replace("replicas: 2", "replicas: 1")
    text = text.replace(
        "      user_id: bigint\n", "      user_id: bigint\n      visits: bigint\n      revision: bigint\n"
    )
    terminals = Terminals(tmp_path, text.replace("    key: user_id", "    version_column: revision\n    key: user_id"))
    yield terminals
    terminals.up.process.kill()
    terminals.up.process.wait()
    assert terminals.up.nobody_is_left()


def test_a_modulo_fleet_moves_over_while_its_writers_go_on(terminals, tmp_path):
    databases = terminals.databases()
    for url in databases.values():  # as it was before
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("ALTER TABLE users DROP COLUMN slot")
    old = OldWriter(databases)
    old.start()
    assert wait_until(lambda: len(old.visits) > USERS / 2, PATIENCE_SECONDS)

    terminals.run("adopt", code=1)
    assert has_no_slot_column(databases["s0"])
    terminals.run("adopt", "--yes")

    old.stop()
    fleet = load_fleet(tmp_path / "shards.yaml")
    visits = Counter(old.visits)
    with publisher(fleet, terminals) as publishing:  # the pods publish now
        for number in range(600):
            user = number % USERS
            visits[user] += 1
            body = {"user_id": user, "visits": visits[user], "revision": visits[user]}
            publishing.publish(Write("users", body)).result() if number % 200 == 0 else publishing.publish(
                Write("users", body)
            )
    assert wait_until(lambda: rows(databases) == visits, PATIENCE_SECONDS)

    terminals.run("adopt", "--yes")
    assert all(table["without_slot"] == 0 for table in json.loads(terminals.run("adopt", "--json")))
    terminals.run("verify")

    terminals.run("rebalance", "plan", "--add", "s3")
    assert terminals.up.says(r"shards\.next\.yaml adds s3"), terminals.up.log.read_text()
    terminals.run("rebalance", "start", "--yes")
    assert terminals.up.says(r"shards\.yaml changed and is applied"), terminals.up.log.read_text()
    report = json.loads(terminals.run("rebalance", "run", "--yes", "--json"))
    assert report["complete"]
    terminals.run("rebalance", "finish", "--yes")
    terminals.run("verify")
    assert rows(terminals.databases()) == visits
    assert sum(rows({"s3": terminals.databases()["s3"]}).values()) > 0, "nothing moved"


def shown(rule, remainder):
    first, end = rule.run_of(remainder)
    return f"slots: {first}-{end - 1}\n"


def publisher(fleet, terminals):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PUBSUB_EMULATOR_HOST", terminals.environment()["PUBSUB_EMULATOR_HOST"])
        return Publisher(fleet)


def has_no_slot_column(url):
    query = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'users' AND column_name = 'slot'"
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchone()[0] == 0


def rows(databases):
    """Each user's visits, over all databases; a user in two of them is counted twice."""
    visits = Counter()
    for url in databases.values():
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            visits.update(dict(connection.execute("SELECT user_id, visits FROM users").fetchall()))
    return visits

"""A fleet on this machine follows what its file says: settings, and slots that move, under load."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import yaml
from patience import PATIENCE_SECONDS
from sqlalchemy.engine import make_url

from shardctl.fleet import yamlfile
from shardctl.fleet.keyspace import slot_of
from shardctl.fleet.load import fleet_from, load_fleet
from shardctl.local.changes import CantApplyError
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Stream
from shardctl.local.moving import Moving
from shardctl.local.oracle import verify
from shardctl.local.servers import BinaryMissingError
from shardctl.local.servers.process import wait_until
from shardctl.rebalance.driver import BarrierPublisher
from shardctl.wire import barrier
from shardctl.wire.barrier import Barrier
from shardctl.wire.message import Write
from tests.e2e.conftest import FLEET
from tests.e2e.test_up import Up

pytestmark = pytest.mark.slow


def changed(shard=0, **settings):
    """The fleet's file with one shard's settings changed."""
    data = yaml.safe_load(FLEET)
    data["shards"][shard] |= settings
    return fleet_from(yamlfile.parse(yaml.safe_dump(data), "shards.yaml"))


@pytest.mark.proof
@pytest.mark.parametrize("replicas", [1])
def test_what_is_applied_replaces_consumers_one_by_one_and_only_where_they_changed(local, scene):
    load = scene(4_000, writes_per_second=1_000)
    load.until_published(500)
    first = {shard: replicas[0] for shard, replicas in local.replicas.items()}
    assert local.apply(changed(consumer={"batch_max_age_ms": 10})) == ("s0",)
    assert local.apply(local.spec) == ()
    assert local.replicas["s1"] == (first["s1"],)
    (second,) = local.replicas["s0"]
    assert second.name == "hurt-s0-1"
    assert (first["s0"].running, first["s0"].died, second.ready) == (False, False, True)
    with pytest.raises(CantApplyError, match="the slots of s0 changed"):
        local.apply(changed(slots="0-511", generation=2))
    load.verify()
    assert local.revive() == []


SHARDCTL = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())")
SMALL = FLEET + "routing: {slot_bits: 5}\nlocal: {replicas: 1}\n"
SMALL = SMALL.replace("0-511", "0-15").replace("512-1023", "16-31")


@pytest.mark.proof
def test_a_shard_is_added_under_load_and_the_oracle_finds_nothing(tmp_path):
    """The demo of a rebalance, small."""
    (tmp_path / "shards.yaml").write_text(SMALL)
    command = [*SHARDCTL, "demo", "--rebalance", "--load", "100", "--entities", "300", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verified"] is True
    assert (report["slots_before"], report["slots_after"]) == ({"s0": 16, "s1": 16}, {"s0": 11, "s1": 11, "s2": 10})
    assert report["slots_moved"] == report["slots_moved_minimum"] == 10
    assert report["writes"] == report["applied"] > 1_000
    assert report["published"] == report["writes"] + report["publisher_duplicates"]
    assert report["closed"]["slots"] == 10
    assert 0 < report["closed"]["p50"] <= report["closed"]["max"]
    assert report["pause"]["slots"] > 0
    assert report["unmoved_rate_before"] > 0
    assert (report["dead_letters"], report["strays"], report["restarts"], report["differences"]) == (0, 0, 0, {})
    assert "before: s0 0-15   s1 16-31   s2 none" in done.stderr
    assert list((tmp_path / "build").iterdir()) == [], "the run was left behind"


class Terminals:
    """`shardctl up` in one, and commands in another that has sourced what `up` wrote."""

    def __init__(self, folder: Path, fleet: str = SMALL) -> None:
        self.folder, self.up = folder, Up(folder, fleet, load=0)

    def environment(self) -> dict[str, str]:
        (file,) = self.folder.glob("build/run-*/env")
        return dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", file.read_text(), re.MULTILINE))

    def start(self, *command: str) -> subprocess.Popen:
        environment = {**os.environ, **self.environment()}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*SHARDCTL, *command], cwd=self.folder, env=environment, **output)

    def run(self, *command: str, code: int = 0) -> str:
        process = self.start(*command)
        out, talk = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, f"{command}: {out}{talk}"
        return out

    def databases(self) -> dict[str, str]:
        prefix = "SHARDCTL_DATABASE_URL_"
        return {
            name.removeprefix(prefix).lower(): url
            for name, url in self.environment().items()
            if name.startswith(prefix)
        }

    def slots(self, state: str) -> int:
        """How many lanes are in this state, over all databases."""
        count = 0
        for url in self.databases().values():
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                query = "SELECT count(*) FROM shardctl_lanes WHERE state = %s"
                count += connection.execute(query, (state,)).fetchone()[0]
        return count


@pytest.fixture
def terminals(tmp_path):
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.up.process.kill()
    terminals.up.process.wait()
    assert terminals.up.nobody_is_left()


@pytest.mark.proof
def test_up_follows_a_rebalance_in_another_terminal_whose_executor_is_killed_on_the_way(terminals, tmp_path):
    up, file = terminals.up, tmp_path / "shards.yaml"
    fleet = load_fleet(file)
    feed = Feed(fleet, terminals.environment()["PUBSUB_EMULATOR_HOST"], Stream(fleet, None, 300), writes_per_second=100)
    feed.start()
    terminals.run("rebalance", "plan", "--add", "s2")
    assert up.says(r"shards\.next\.yaml adds s2, with databases"), up.log.read_text()
    assert not any(make_url(url).password in up.log.read_text() for url in terminals.databases().values())
    terminals.run("rebalance", "start", "--yes")
    assert up.says(r"shards\.yaml changed and is applied: consumers of s2, s0, s1"), up.log.read_text()

    killed = terminals.start("rebalance", "run", "--yes")
    assert wait_until(lambda: terminals.slots("due") > 0 or killed.poll() is not None, PATIENCE_SECONDS)
    killed.kill()
    output = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, (
        output
    )  # not refused: the consumers of an applied file count as readers
    assert terminals.slots("left") < 32, "it was killed too late to prove anything"
    report = json.loads(terminals.run("rebalance", "run", "--yes", "--json"))
    assert (report["complete"], report["slots"], report["failed"]) == (True, 32, [])

    terminals.run("rebalance", "finish", "--yes")
    assert up.says(r"(?s)is applied.*shards\.yaml changed and is applied: consumers of s0, s1\n"), up.log.read_text()
    feed.stop()
    settled = load_fleet(file)
    assert not settled.rebalancing
    terminals.run("verify")
    applied = len(feed.writes)
    assert wait_until(lambda: sum(map(inbox_rows, terminals.databases().values())) >= applied, PATIENCE_SECONDS)
    verdict = verify(settled, feed.writes, terminals.databases())
    assert verdict.ok, "\n".join(map(str, verdict.findings[:20]))
    assert all(shard.applied for shard in verdict.shards)
    assert "ended unexpectedly" not in up.log.read_text()


@pytest.mark.proof
def test_one_command_beside_up_is_killed_midway_and_completes_when_run_again(terminals, tmp_path):
    up, file = terminals.up, tmp_path / "shards.yaml"
    fleet = load_fleet(file)
    feed = Feed(fleet, terminals.environment()["PUBSUB_EMULATOR_HOST"], Stream(fleet, None, 300), writes_per_second=100)
    feed.start()
    killed = terminals.start("rebalance", "go", "--add", "s2", "--yes")
    assert wait_until(
        lambda: ("s2" in terminals.databases() and terminals.slots("left") > 0) or killed.poll() is not None,
        PATIENCE_SECONDS,
    )
    killed.kill()
    output = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, output
    assert load_fleet(file).rebalancing

    out = terminals.run("rebalance", "go", "--yes", "--hold", "1h", "--no-wait", "--json", code=4)
    assert "hold" in {json.loads(line)["step"] for line in out.splitlines()}
    terminals.run("rebalance", "go", "--add", "s2", "--yes")
    assert up.says(r"(?s)is applied.*shards\.yaml changed and is applied: consumers of s0, s1\n"), up.log.read_text()
    feed.stop()
    settled = load_fleet(file)
    assert not settled.rebalancing
    assert {shard.name for shard in settled.shards} == {"s0", "s1", "s2"}
    terminals.run("rebalance", "go", "--add", "s2", "--yes")  # it is known that this is done
    terminals.run("verify")
    applied = len(feed.writes)
    assert wait_until(lambda: sum(map(inbox_rows, terminals.databases().values())) >= applied, PATIENCE_SECONDS)
    verdict = verify(settled, feed.writes, terminals.databases())
    assert verdict.ok, "\n".join(map(str, verdict.findings[:20]))
    assert "ended by itself" not in up.log.read_text()


def inbox_rows(url: str) -> int:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute("SELECT count(*) FROM shardctl_inbox").fetchone()[0]


@pytest.mark.proof
def test_forged_barriers_on_slots_that_are_arriving_lose_no_write(tmp_path):
    """Of the open rebalance, in order, with all that the journals say: whatever is acked afterwards is in a database."""
    fleet = fleet_from(yamlfile.parse(SMALL, "shards.yaml"))
    with contextlib.ExitStack() as ending:
        try:
            local = ending.enter_context(LocalFleet(fleet, tmp_path))
        except BinaryMissingError as missing:
            pytest.skip(str(missing))
        moving = Moving.adding(local, "s2")
        moving.open()
        moving.roll()
        with psycopg.connect(local.databases["s0"].replace("+psycopg", "")) as connection:
            ((rebalance,),) = connection.execute("SELECT id FROM shardctl_rebalances WHERE state = 'open'").fetchall()
        with local.as_emulator():
            publisher = BarrierPublisher(fleet)
        for shard in fleet.shards:
            for slot in moving.moved & frozenset(shard.slots):
                forged = Barrier(rebalance, shard.name, shard.generation, "guess")
                publisher(barrier.encode(fleet, shard, slot, forged)).result()
        publisher.close()
        keys = [key for key in map(str, range(400)) if slot_of(key, fleet.routing.slot_bits) in moving.moved]
        local.publish([Write("customer", {"customer_id": key, "name": "x"}) for key in keys])
        local.wait_drained(60)
        there = set()
        for url in local.databases.values():
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                there |= {key for (key,) in connection.execute("SELECT customer_id FROM customers").fetchall()}
        assert len(keys) > 50
        assert there == set(keys)

"""A desk that dies at any step, and desks whose broker misbehaves: run again, each write takes effect once and in order."""

from __future__ import annotations

import itertools
import threading

import pytest
from deadletter_kit import BrokerThread, Town

from shardctl.deadletter import archive, pubsub, reading
from shardctl.deadletter.choice import Choice
from shardctl.deadletter.inboxes import Allowed, Inboxes
from shardctl.deadletter.leasedreader import LeasedReader
from shardctl.deadletter.pubsub import Outlet
from shardctl.deadletter.replay import Report, in_order, replay
from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import slot_of

pytestmark = pytest.mark.slow
_projects = itertools.count()
KEYS = [key for key in map("k{}".format, range(40)) if slot_of(key, 6) < 32][:2]
EACH = range(2)
WRITES = [f"{key}/{number}" for number in EACH for key in KEYS]


@pytest.fixture(scope="module")
def broker():
    made = BrokerThread()
    yield made
    made.stop()


@pytest.fixture
def town(broker, tmp_path, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    made = Town(broker, tmp_path, f"crash-test-{next(_projects)}")
    made.run("CREATE TABLE gate AS SELECT 1 AS shut")
    made.run("CREATE TABLE history (number INTEGER PRIMARY KEY, id TEXT)")
    made.run(
        "CREATE TRIGGER no BEFORE INSERT ON entries WHEN (SELECT shut FROM gate) BEGIN SELECT RAISE(ABORT, 'shut'); END"
    )
    made.run("CREATE TRIGGER log_entry AFTER INSERT ON entries BEGIN INSERT INTO history (id) VALUES (NEW.id); END")
    yield made
    made.faults()
    made.close()


def fail_all(town):
    """Every write is an insert that failed, and could succeed now."""
    for table in ("entries", "history", "shardctl_inbox"):
        town.run(f"DELETE FROM {table}")
    town.run("UPDATE gate SET shut = 1")
    for write in WRITES:
        key = write.partition("/")[0]
        town.publish("entry", {"id": write, "owner": key}, key, idempotency_key=write)
    town.consume()
    town.run("UPDATE gate SET shut = 0")
    assert town.backlog() == len(WRITES)


class KilledError(BaseException):
    pass


class Dying:
    """Counts the steps of a run, and ends it at one of them: nothing has an effect after that, as with a dead process."""

    def __init__(self, at):
        self.at, self.steps = at, 0

    def step(self):
        self.steps += 1
        if self.steps == self.at:
            raise KilledError

    def around(self, call):
        def called(*arguments, **named):
            self.step()
            result = call(*arguments, **named)
            self.step()
            return result

        return called


class _Inboxes:
    def __init__(self, real, dying):
        self.survey, self.let_go = real.survey, dying.around(real.let_go)


class _Outlet:
    def __init__(self, real, dying):
        self._real, self._dying = real, dying

    def publish(self, topics, messages):
        """A few at a time, so that it can die between them."""
        for message in messages:
            self._dying.around(self._real.publish)(topics, [message])
        return {}


def run_desk(town, dying, folder, silence_seconds=10.0):
    """One run of the desk. False when it died: then its leases stay until they end."""
    with pubsub.clients() as (publisher, subscriber), (folder / "spool").open("w+b") as file:
        desk = LeasedReader(subscriber, town.project, ["shop-dead"], left=town.backlog, silence_seconds=silence_seconds)
        spool = archive.Spool(file)
        urls = town.urls
        with desk, Inboxes(town.fleet, urls, Allowed()) as inboxes, archive.Archive(folder / "copies.ndjson") as copies:
            read = reading.off_desk(town.fleet, desk, Choice(), strays=False)
            letters = in_order(reading.spooled(read, spool, strays=False, max_bytes=1 << 30))
            report = Report()
            try:
                replay(
                    town.fleet,
                    letters,
                    reading.fetch_from(spool),
                    _Inboxes(inboxes, dying),
                    _Outlet(Outlet(publisher, town.project), dying),
                    report,
                    keep=dying.around(copies.add),
                    take_off=dying.around(desk.take_off),
                )
            except KilledError:
                desk._ack_ids.clear()  # a dead process hands nothing back
                return False
    assert report.left == []
    return True


def history(town):
    return [row[0] for row in town.shards["s0"].rows("SELECT id FROM history ORDER BY number")]


def in_order_of_key(applied):
    return all([effect for effect in applied if effect.startswith(key)] == [f"{key}/{n}" for n in EACH] for key in KEYS)


@pytest.mark.proof
def test_killed_at_every_step_and_run_again(town, tmp_path):
    """Whether the consumers were quick or slow with what had been published."""
    counting = Dying(0)
    fail_all(town)
    assert run_desk(town, counting, tmp_path)
    town.consume()
    assert counting.steps > 10
    for at, consumed_between in itertools.product(range(1, counting.steps + 1), (True, False)):
        fail_all(town)
        (tmp_path / "copies.ndjson").unlink()
        assert not run_desk(town, Dying(at), tmp_path)
        town.end_leases()
        if consumed_between:
            town.consume()
        assert run_desk(town, Dying(0), tmp_path)
        town.consume()
        applied = history(town)
        kept = (tmp_path / "copies.ndjson").read_bytes().splitlines()
        assert {archive.decode(line)[1].attributes["idempotency_key"] for line in kept} == set(WRITES)
        assert sorted(applied) == sorted(WRITES), f"killed at step {at}"
        assert in_order_of_key(applied), f"killed at step {at}"
        assert set(town.inbox().values()) == {"applied"}
        assert town.backlog() == 0, f"killed at step {at}"


def test_desks_side_by_side_on_a_broker_that_misbehaves(town, tmp_path):
    """Leases end early, replies and acks are lost, messages come twice: letters are met by both desks, and the write is one."""
    for seed in range(2):
        fail_all(town)
        town.faults(
            seed=seed,
            early_expiry_rate=0.3,
            lost_reply_rate=0.2,
            unavailable_rate=0.1,
            duplicate_rate=0.2,
            drop_ack_rate=0.2,
            replay_acked=True,
        )

        def work(name):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            try:
                run_desk(town, Dying(0), folder, 0.5)
            except ShardctlError as error:
                print(error)

        for _ in range(3):
            desks = [threading.Thread(target=work, args=(name,)) for name in "ab"]
            for desk in desks:
                desk.start()
            for desk in desks:
                desk.join()
            town.faults(seed=seed)
            town.consume()
            if town.backlog() == 0:
                break
        town.end_leases()
        assert run_desk(town, Dying(0), tmp_path)
        town.consume()
        applied = history(town)
        assert sorted(applied) == sorted(WRITES), f"seed {seed}"
        assert town.backlog() == 0, f"seed {seed}"

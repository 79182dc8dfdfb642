"""`shardctl rebalance start, run, status, abort, finish` on a broker and SQLite; a thread plays the consumers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from migrate_kit import revision_text
from rebalance_kit import AFTER

from shardctl import lockfile
from shardctl.cli import main
from shardctl.fleet.load import load_fleet
from shardctl.migrate import newshard
from shardctl.rebalance import closing, driver, opening
from shardctl.shard import membership
from shardctl.shard.database import writing
from shardctl.shard.schema import LaneState, RebalanceState

pytestmark = pytest.mark.slow


def test_a_rebalance_from_its_start_to_its_finish(site):
    before = site.file.read_text()

    code, out, err = site("start")
    assert (code, site.file.read_text(), site.journal()) == (1, before, {})
    assert "s2: generation 1, 4 slots; new subscriptions: orders-s2-g1" in out
    assert "`shardctl rebalance start --yes`" in err

    code, out, err = site("start", "--yes")
    assert code == 0
    assert "`shardctl apply -f shards.yaml --yes`" in err
    assert '"action": "rebalance start", "fleet": "orders"' in err
    assert (site.file.read_text(), Path("shards.before.yaml").read_text()) == (site.text(AFTER), before)
    assert not site.next.exists()
    assert lockfile.read(site.file) == lockfile.lock_of(load_fleet(site.file))
    assert {"orders-s0-g1", "orders-s0-g2", "orders-s1-g2", "orders-s2-g1"} <= site.subscriptions()
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "open")

    assert site("start", "--yes")[0] == 0  # once more, in place

    code, _, err = site("run", "--yes")
    assert code == 1
    assert (
        "no consumer of shard s0 has been reading generation 1 for the last 60 s. Apply the file: `shardctl apply"
        in err
    )

    site.consume()
    code, out, err = site("run")
    assert code == 1
    assert "2 move from s0 to s2: 6-7" in out
    assert "`shardctl rebalance run --yes`" in err

    code, _, err = site("finish", "--yes")
    assert code == 1
    assert "16 slots aren't handed over: 0-15. `shardctl rebalance run`" in err

    code, out, err = site("run", "--yes", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["complete"], report["moved"], report["flipped"], report["rows_copied"]) == (True, 4, 12, 12)
    assert 0 < report["copying_seconds"] < report["seconds"]
    assert set(report["pause_seconds"]) == {"p50", "p99", "max"}
    assert "`shardctl rebalance finish -f shards.yaml`" in err
    assert site.world.active() == site.world.wanted()

    code, out, err = site("status", "--json")
    assert code == 0
    assert json.loads(out)["stages"] == {"waiting": 0, "due": 0, "left": 0, "arrived": 16, "broken": 0}
    assert site("status")[0] == 0

    code, out, err = site("finish")
    assert code == 1
    assert "subscription orders-s0-g1" in out
    assert "6 rows of slots 6-7 in the database of s0" in out
    assert "point of no return" in err
    code, _, err = site("finish", "--yes", "--keep-source", "1h")
    assert code == 4
    assert "Nothing was done: the sources keep their copies of moved rows until" in err
    assert "orders-s0-g1" in site.subscriptions()

    code, out, err = site("finish", "--yes")
    assert code == 0
    assert "12 rows deleted" in err
    assert " iampolicymember.iam.cnrm.cloud.google.com/orders-s0-g1-subscriber " in err
    assert "Apply the file: `shardctl apply -f shards.yaml --yes`" in err
    assert not {"orders-s0-g1", "orders-s1-g1"} & site.subscriptions()
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "done")
    assert site.world.rows("s0") == dict.fromkeys(range(6), 3)
    fleet = load_fleet(site.file)
    assert not fleet.rebalancing
    assert lockfile.read(site.file) == lockfile.lock_of(fleet)
    assert {(name, lane.generation) for name, lanes in site.world.lanes().items() for lane in lanes.values()} == {
        ("s0", 2),
        ("s1", 2),
        ("s2", 1),
    }
    assert main(["validate"]) == 0
    assert site("finish", "--yes")[0] == 1  # nothing is left to finish


def test_nothing_leads_back_once_finish_has_begun(site, monkeypatch):
    """`finish` was killed after its first deletions, and its old subscriptions were made again by something else."""
    assert site("start", "--yes")[0] == 0
    site.consume()
    assert site("run", "--yes")[0] == 0
    assert "nothing leads back" not in site("status")[1]

    class KilledError(BaseException):
        """The process ends here."""

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patching:
        patching.setattr(closing, "delete_rows", killed)
        with pytest.raises(KilledError):
            site("finish", "--yes")
    assert "orders-s0-g1" not in site.subscriptions()
    opening.provision.provision_pubsub(load_fleet(site.file), site.publisher, site.subscriber)
    for command in (
        ("back", "--yes"),
        ("go", "--back", "--yes"),
        ("plan", "--back"),
        ("abort", "--yes"),
        ("start", "--yes"),
    ):
        code, _, err = site(*command)
        assert (code, "point of no return: old subscriptions and moved rows may" in err) == (1, True), command
    assert not site.next.exists()
    code, out, _ = site("status")
    assert (code, "finishing" in out, "`finish` has begun: nothing leads back" in out) == (0, True, True)
    assert json.loads(site("status", "--json")[1])["finishing"] is True
    assert site("finish", "--yes")[0] == 0
    assert site.world.rows("s0") == dict.fromkeys(range(6), 3)


def test_an_abort_and_the_way_on(site):
    site("start", "--yes")
    site.consume()
    code, out, err = site("abort")
    assert code == 1
    assert "slots that wait will not begin" in out
    code, out, err = site("abort", "--yes", "--json")
    assert code == 0
    assert json.loads(out)["aborted"]
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "aborted")
    assert "plan --back" in err
    code, _, err = site("run", "--yes")
    assert code == 1
    assert "was aborted" in err
    assert site("abort", "--yes")[0] == 1  # nothing is open
    assert site("start", "--yes")[0] == 0
    assert site("run", "--yes")[0] == 0
    assert site.world.active() == site.world.wanted()


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an older version"])
def test_no_command_changes_databases_that_are_exchanged(site, monkeypatch, recorded):
    assert site("start", "--yes")[0] == 0
    site.consume()
    names = [f"SHARDCTL_DATABASE_URL_S{number}" for number in range(2)]
    urls = [os.environ[name] for name in names]
    lanes = site.world.lanes()
    for engine in () if recorded else site.world.own.values():
        with writing(engine) as connection:
            membership.table.drop(connection)
    for name, url in zip(names, reversed(urls), strict=True):
        monkeypatch.setenv(name, url)
    for command in ("start", "run", "abort", "finish"):
        code, _, err = site(command, "--yes")
        by_its_lanes = "which the file doesn't list" in err or "another shard's database" in err
        assert (code, "belongs to shard" in err, by_its_lanes) == (1, recorded, not recorded), command
        assert site.world.lanes() == lanes, command
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "open")


def test_a_next_file_that_does_not_follow(site):
    site.next.write_text(
        site.text(AFTER).replace("previous: [{generation: 1, slots: 0-7}]", "previous: [{generation: 1, slots: 0-6}]")
    )
    code, _, err = site("start", "--yes")
    assert code == 2
    assert "the slots of shard s0, generation 1, were 0-7 and are 0-6" in err
    assert "doesn't follow from shards.yaml" in err
    assert site.journal() == {}


def test_killed_between_the_file_and_the_end(site):
    """The next file is in place already: what it was before is kept."""
    Path("shards.before.yaml").write_text("as it was")
    site.file.write_text(site.text(AFTER))
    assert site("start", "--yes")[0] == 0
    assert Path("shards.before.yaml").read_text() == "as it was"
    assert not site.next.exists()


def test_without_a_next_file(site):
    site.next.unlink()
    code, _, err = site("start", "--yes")
    assert code == 2
    assert "`shardctl rebalance plan`" in err


def test_start_refuses_while_an_old_subscription_is_missing(site):
    site.subscriber.delete_subscription(subscription=f"projects/{site.project}/subscriptions/orders-s0-g1")
    code, _, err = site("start", "--yes")
    assert code == 1
    assert "orders-s0-g1 isn't there, though slots may be active behind it" in err
    assert site.journal() == {}


def test_start_refuses_a_lag(site):
    topic = f"projects/{site.project}/topics/data-writes"
    for _ in range(3):
        site.publisher.publish(topic, b"{}", slot="0000", message_type="a").result()
    code, _, err = site("start", "--yes", "--max-lag", "2")
    assert code == 1
    assert "shard s0 lags by 3 messages" in err
    assert site("start", "--yes", "--max-lag", "3")[0] == 0


def test_finish_refuses_while_old_messages_are_left(site):
    site("start", "--yes")
    topic = f"projects/{site.project}/topics/data-writes"
    site.consume()
    assert site("run", "--yes")[0] == 0
    site.deaf = True
    with writing(site.world.own["s2"]) as connection:  # as if the last barrier had been in the future
        connection.exec_driver_sql("UPDATE shardctl_lanes SET barrier_time_us = barrier_time_us + 3600000000")
    site.publisher.publish(topic, b"{}", slot="0000", message_type="a").result()
    code, _, err = site("finish", "--yes")
    assert code == 1
    assert "not known to be empty" in err
    with writing(site.world.own["s2"]) as connection:
        connection.exec_driver_sql("UPDATE shardctl_lanes SET barrier_time_us = barrier_time_us - 3600000000")
    assert "orders-s0-g1" in site.subscriptions()
    assert site("finish", "--yes")[0] == 0  # what is left was published after the last barrier


def test_finish_refuses_before_anything_is_deleted_where_more_than_moved_rows_would_go(site):
    site("start", "--yes")
    site.consume()
    assert site("run", "--yes")[0] == 0
    with writing(site.world.own["s0"]) as connection:  # since the rebalance was started
        connection.exec_driver_sql("CREATE TABLE notes (row text REFERENCES a_rows ON DELETE CASCADE)")
        connection.exec_driver_sql("INSERT INTO notes SELECT id FROM a_rows")
        notes = connection.exec_driver_sql("SELECT count(*) FROM notes").scalar()
    subscriptions = site.subscriptions()
    code, _, err = site("finish", "--yes")
    assert code == 1
    assert "- shard s0: table notes refers to a_rows, but its own rows don't belong to slots" in err
    assert site.subscriptions() == subscriptions
    with writing(site.world.own["s0"]) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM notes").scalar() == notes
        connection.exec_driver_sql("DROP TABLE notes")
    assert site("finish", "--yes")[0] == 0


def test_ctrl_c_stops_between_effects(site):
    site("start", "--yes")
    site.consume()
    site.deaf = True

    def press_once_it_has_begun():
        while LaneState.DUE not in site.world.states().values():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press_once_it_has_begun)
    pressing.start()
    code, _, err = site("run", "--yes")
    pressing.join()
    assert code == 130
    assert "`shardctl rebalance run -f shards.yaml --yes` continues" in err
    site.deaf = False
    assert site("run", "--yes")[0] == 0


def test_no_credentials_is_reported(site, monkeypatch):
    from google.auth.exceptions import DefaultCredentialsError

    site("start", "--yes")
    site.consume()

    def fail(*_):
        raise DefaultCredentialsError("none")

    monkeypatch.setattr(driver, "BarrierPublisher", fail)
    code, _, err = site("run", "--yes")
    assert code == 1
    assert "no Google Cloud credentials" in err


def test_a_settled_file_has_nothing_to_do(site):
    for command in ("run", "abort", "finish"):
        code, _, err = site(command, "--yes")
        assert code == 1
        assert "`shardctl rebalance plan" in err
    code, out, _ = site("status", "--json")
    assert (code, json.loads(out)) == (0, {"rebalance": None})


def test_the_status_of_databases_without_tables_is_unknown_and_not_broken(site, tmp_path, monkeypatch):
    site.next.replace(site.file)
    (tmp_path / "another.db").touch()
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", f"sqlite:///{tmp_path / 'another.db'}")
    for arguments in ("status",), ("status", "--json"):
        code, out, err = site(*arguments)
        assert (code, out) == (1, "")
        assert "shard s1: its database has none of shardctl's tables" in err


def test_only_shards_that_take_part_need_a_database(site, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S2")
    code, _, err = site("start", "--yes")
    assert code == 1
    assert "no database URL for s2" in err
    assert RebalanceState.OPEN not in site.journal().values()


def test_a_file_edited_meanwhile_is_left_as_it_is(site, monkeypatch):
    def edited(module, name):
        """The file as somebody writes it while the command is at this step."""
        step = getattr(module, name)

        def while_it_works(*given, **more):
            site.file.write_text(site.file.read_text() + "# mine\n")
            return step(*given, **more)

        monkeypatch.setattr(module, name, while_it_works)
        return lambda: monkeypatch.setattr(module, name, step)

    for command, module, name in (("start", opening, "open_rebalance"), ("finish", closing, "close")):
        put_back = edited(module, name)
        code, _, err = site(command, "--yes")
        assert (code, "shards.yaml has changed since this command began" in err) == (1, True)
        assert site.file.read_text().endswith("# mine\n")
        put_back()
        assert site(command, "--yes")[0] == 0  # run again, it takes the file as it is now
        if command == "start":
            site.consume()
            assert site("run", "--yes")[0] == 0


def test_slots_wait_for_a_schema_change_and_a_new_shard_gets_what_the_others_have(site, monkeypatch):
    table = next(kind.table for kind in load_fleet(site.file).message_types.values())
    Path("migrations").mkdir()
    operation = f"op.create_index('by_slot', {table!r}, ['slot'])"
    Path("migrations/r1.py").write_text(revision_text("r1", None, operation))
    newshard.bring_up(site.file, load_fleet(site.file), {"s0": os.environ["SHARDCTL_DATABASE_URL_S0"]})
    code, _, err = site("start", "--yes")
    assert code == 1
    assert "shard s1: it doesn't have schema revision r1" in err
    assert site.journal() == {}
    assert main(["migrate", "apply", "--yes"]) == 0
    assert site("start", "--yes")[0] == 0
    assert main(["migrate", "status"]) == 0
    assert main(["migrate", "verify"]) == 0
    Path("migrations/r2.py").write_text(revision_text("r2", "r1"))
    assert main(["migrate", "apply", "--yes"]) == 1

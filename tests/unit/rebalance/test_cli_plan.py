"""`shardctl rebalance plan`: exit codes, what stdout carries, the file it writes."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, insert

from shardctl.cli import main
from shardctl.fleet import scaffold
from shardctl.fleet.load import load_fleet
from shardctl.shard import schema
from shardctl.wire import identity

TEXT = scaffold.text(3)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """`shardctl rebalance plan` in a folder with three shards; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards.yaml").write_text(TEXT)

    def ran(*arguments):
        code = main(["rebalance", "plan", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return ran


@pytest.fixture
def databases(tmp_path, monkeypatch):
    """A SQLite database for each shard, with the writes of its inbox: by default five on slots 0 to 99."""
    fleet = load_fleet(tmp_path / "shards.yaml")
    for shard in fleet.shards:
        url = f"sqlite:///{tmp_path}/{shard.name}.db"
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{shard.name.upper()}", url)
        engine = create_engine(url)
        schema.create(engine, dict(fleet.message_types), shard.slots, 1)
        now = datetime.now(UTC)
        rows = [
            {
                "slot": slot,
                "identity": identity.of_message(f"{slot}-{number}-{age}"),
                "key_hash": 1,
                "published": schema.published(int((now - age).timestamp()) * 1_000_000),
            }
            for slot in shard.slots
            for number in range(6 if slot < 100 else 1)
            for age in (timedelta(minutes=1), *([timedelta(days=1)] * (slot > 900)))
        ]
        with engine.begin() as connection:
            connection.execute(insert(schema.inbox), rows)
        engine.dispose()


def test_a_plan_is_shown_and_written(run, tmp_path):
    code, out, err = run("--add", "s3")
    assert code == 0
    assert "no plan moves fewer than" in out
    assert "orders-s3-g1" in out
    assert "shardctl rebalance start" in err
    fleet = load_fleet(tmp_path / "shards.next.yaml")
    assert fleet.rebalancing
    assert (tmp_path / "shards.yaml").read_text() == TEXT


def test_json_is_for_machines(run):
    code, out, _ = run("--split", "s0", "--into", "north", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["moved"] == sum(move["slot_count"] for move in document["moves"]) >= document["minimum"]
    assert {shard["name"] for shard in document["changed"]} == {"s0", "north"}
    assert document["file"] == "shards.next.yaml"
    assert document["rows"] is None


def test_the_next_file_can_go_to_stdout(run, tmp_path):
    code, out, _ = run("--remove", "s1", "-o", "-")
    assert code == 0
    assert out.startswith(TEXT[:200])
    assert "slots: []" in out
    assert not (tmp_path / "shards.next.yaml").exists()


def test_an_earlier_plan_is_written_over_and_nothing_else(run, tmp_path):
    assert run("--add", "s3")[0] == run("--add", "s4")[0] == 0
    (tmp_path / "other.yaml").write_text("mine")
    code, _, err = run("--add", "s3", "-o", "other.yaml")
    assert (code, (tmp_path / "other.yaml").read_text()) == (1, "mine")
    assert "--force" in err
    assert run("--add", "s3", "-o", "shards.yaml")[0] == 1
    assert run("--add", "s3", "-o", "other.yaml", "--force")[0] == 0


def test_the_way_back(run, tmp_path):
    run("--add", "s3")
    code, _, err = run("-f", "shards.next.yaml", "--back", "-o", "back.yaml")
    assert code == 0, err
    back = load_fleet(tmp_path / "back.yaml").settled()
    assert [shard.slots for shard in back.shards] == [
        shard.slots for shard in load_fleet(tmp_path / "shards.yaml").shards
    ]


def test_load_is_measured_in_the_databases(run, databases, tmp_path):
    code, out, err = run("--by-load", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert "writes a second on 1,024 slots" in err
    assert {move["from"] for move in document["moves"]} == {"s0"}
    shares = {share["name"]: share for share in document["shards"]}
    assert shares["s0"]["share_before"] == pytest.approx((352 + 500) / 1524)
    assert shares["s0"]["share_after"] < 0.36
    assert document["rows"] > 0


def test_what_is_older_than_the_window_does_not_count(run, databases):
    shares = [
        json.loads(run("--by-load", "--window", window, "--json", "--force")[1])["shards"] for window in ("15m", "2d")
    ]
    assert shares[0][2]["share_before"] == pytest.approx(352 / 1524)
    assert shares[1][2]["share_before"] == pytest.approx((352 + 123) / (1524 + 123))


def test_rows_to_copy_are_counted_where_databases_are_there(run, databases):
    document = json.loads(run("--split", "s0", "--json")[1])
    assert document["rows"] >= document["moved"]
    assert document["expected_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tolerance", "20%"], 1, "nothing to move"),
        (["--remove", "s9"], 2, "no shard 's9'"),
        (["--add", "s3", "--remove", "s0"], 2, "changes of their own"),
        (["--weights", "s0"], 2, "SHARD=WEIGHT"),
        (["--weights", "s0=x"], 2, "SHARD=WEIGHT"),
        (["--tolerance", "few"], 2, "percentage"),
        (["--by-load"], 1, "without --by-load"),
        (["--by-load", "--window", "soon"], 2, "a duration is"),
        (["--back"], 2, "no rebalance is open"),
        (["--add", "s3", "--json", "-o", "-"], 2, "both use stdout"),
        (["-f", "none.yaml"], 2, "no such file"),
    ],
)
def test_refusals(run, tmp_path, arguments, code, message):
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (code, "")
    assert message in err
    assert not (tmp_path / "shards.next.yaml").exists()

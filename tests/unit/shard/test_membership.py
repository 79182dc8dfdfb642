"""Whose a database is: recorded once, and compared by each new session."""

import ast
from pathlib import Path

import pytest
from sqlalchemy import inspect

import shardctl
from shardctl.errors import UsageError
from shardctl.shard import database, membership
from shardctl.shard.membership import Membership
from shardctl.shard.takeover import Takeover

OWN, OTHER = Membership("orders", "s0"), Membership("orders", "s1")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/s0.db"


def record(url, own, instead_of=None):
    with database.writing(database.connect(url)) as connection:
        membership.create(connection)
        membership.record(connection, own, instead_of)


def recorded(url):
    with database.snapshot(database.connect(url)) as connection:
        return membership.read(connection)


def test_a_row_is_never_overwritten(url):
    record(url, OWN)
    record(url, OWN)
    with pytest.raises(
        database.DatabaseError, match="belongs to shard s0 of fleet orders, and was given as that of shard s1"
    ):
        record(url, OTHER)
    with pytest.raises(database.DatabaseError):
        record(url, OTHER, instead_of=Membership("else", "s0"))
    assert recorded(url) == OWN


def test_a_row_is_replaced_for_whom_the_caller_names(url):
    record(url, OWN)
    record(url, OTHER, instead_of=OWN)
    assert recorded(url) == OTHER


@pytest.mark.parametrize("own", [OTHER, Membership("staging", "s0")], ids=["another shard", "another fleet"])
def test_no_session_begins_on_anothers_database(url, own):
    record(url, OWN)
    engine = database.connect(url, whose=own)
    for session in (database.snapshot, database.writing):
        with (
            pytest.raises(database.DatabaseError, match=f"(?s)belongs to {OWN}.*--take-over orders/s0`") as caught,
            session(engine),
        ):
            pass
        assert not database.is_transient(caught.value)
    with database.snapshot(database.connect(url, whose=OWN)) as connection:
        assert membership.read(connection) == OWN


def test_a_database_that_says_nothing_is_believed(url):
    with database.writing(database.connect(url, whose=OWN)) as connection:
        assert membership.read(connection) is None
        membership.create(connection)
    with database.snapshot(database.connect(url, whose=OWN)) as connection:
        assert membership.read(connection) is None


def test_one_url_for_two_shards_is_refused(url):
    with (
        pytest.raises(database.DatabaseError, match="shards s0 and s1 have one database URL"),
        database.connected("orders", {"s0": url, "s1": url}),
    ):
        pass
    with database.connected("orders", {"s0": url, "s1": url.replace("s0", "s1")}) as engines:
        assert list(engines) == ["s0", "s1"]


@pytest.mark.parametrize(
    ("names", "former", "own", "included"),
    [
        ([], OWN, OTHER, False),
        (["orders"], OWN, Membership("staging", "s0"), True),
        (["orders"], OTHER, Membership("staging", "s0"), False),
        (["orders/s0"], OWN, Membership("staging", "east"), True),
        (["orders/s1"], OWN, Membership("staging", "s0"), False),
        (["else", "orders"], OWN, Membership("staging", "s0"), True),
    ],
)
def test_from_whom_a_database_may_be_taken(names, former, own, included):
    assert Takeover.of(names).includes(former, own) == included


@pytest.mark.parametrize("name", ["", "/", "a/", "/s0", "a/b/c"])
def test_a_name_that_is_none(name):
    with pytest.raises(UsageError, match="FLEET or FLEET/SHARD"):
        Takeover.of([name])


# Where no shard is opened: a draft of a file reads the tables of any database, `provision` compares before it takes one over.
BY_THEMSELVES = {"cli/init.py", "provision.py", "relay/process.py"}


def test_every_engine_of_a_shards_compares_whose_its_database_is():
    """Each product module that opens one says whose it is; so there is one place and one way."""
    folder = Path(shardctl.__file__).parent
    modules = [*folder.rglob("*.py"), *(folder.parent / "consumer").rglob("*.py")]
    silent = [
        f"{path.relative_to(folder.parent)}:{call.lineno}"
        for path in modules
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and _opens(call, path.read_text())
        if not any(keyword.arg == "whose" for keyword in call.keywords)
        if path.relative_to(folder.parent).as_posix().removeprefix("shardctl/") not in BY_THEMSELVES
    ]
    assert not silent


def _opens(call, text):
    name = ast.unparse(call.func)
    own_connect = name == "connect" and "from shardctl.shard.database import connect" in text
    return name in {"database.connect", "databases.connect", "open_engine"} or own_connect


def test_the_table_is_no_part_of_what_consumers_wait_for():
    from shardctl.shard import schema

    assert membership.table.name not in schema.metadata.tables
    assert inspect(membership.table).name.startswith("shardctl_")

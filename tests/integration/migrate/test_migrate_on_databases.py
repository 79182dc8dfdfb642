"""Schema changes on real databases: killed at every step, beside writers, against locks, and never beside a rebalance."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from datetime import timedelta

import pytest
from consumerprocess_kit import until
from migrate_kit import Shop
from products_kit import PRODUCTS, SERVERS, empty_database
from sqlalchemy import event, inspect, select
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.errors import TransientError
from shardctl.migrate import sameness
from shardctl.migrate.errors import ApplyError
from shardctl.migrate.run import Patience, Run
from shardctl.rebalance import journal
from shardctl.rebalance.journal import JournalError
from shardctl.shard import database, revisions
from shardctl.shard.schema import rebalances

pytestmark = pytest.mark.slow
SHORT = Patience(timedelta(seconds=1), timedelta(seconds=1))


@pytest.fixture
def shop_on(request, tmp_path):
    with ExitStack() as ending:

        def make(product):
            urls = {name: ending.enter_context(empty_database(request, product)) for name in ("s0", "s1")}
            shop = Shop(tmp_path, urls)
            ending.callback(shop.close)
            return shop

        yield make


@pytest.fixture(params=PRODUCTS)
def shop(request, shop_on):
    return shop_on(request.param)


def columns(shop, shard="s0", table="orders"):
    with shop.engines[shard].connect() as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def states(shop, shard="s0"):
    with shop.engines[shard].connect() as connection:
        return {name: entry.state.value for name, entry in revisions.read(connection).items()}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing that the process would do comes after it."""


class Killer:
    """Kills the process at its n-th step: before or after a statement that changes something, or before a commit."""

    def __init__(self, engines, step):
        self.left, self.dead = step, False
        for engine in engines.values():
            event.listen(engine, "before_cursor_execute", self._statement)
            event.listen(engine, "after_cursor_execute", self._statement)
            event.listen(engine, "commit", lambda _: self._pass())

    def _statement(self, connection, cursor, statement, *_):
        if self.dead or not statement.lstrip("( ").upper().startswith(("SELECT", "SHOW", "SET", "PRAGMA", "DESCRIBE")):
            self._pass()

    def _pass(self):
        self.left -= 1
        self.dead = self.dead or self.left < 0
        if self.dead:
            raise KilledError


def killed_at(shop, step):
    """Whether an apply of its own process came to its `step`, where it was killed."""
    engines = {name: database.connect(url) for name, url in shop.urls.items()}
    killer = Killer(engines, step)
    try:
        Run(shop.fleet, shop.history, engines, Patience()).apply("s0", parallel=1)
    except KilledError:
        return True
    finally:
        for engine in engines.values():
            engine.dispose()
    return killer.dead


@pytest.mark.proof
def test_an_apply_that_is_killed_at_any_step_is_completed_by_the_next_one(shop):
    step = 0
    while True:
        shop.add(
            f"op.add_column('orders', sa.Column('a{step}', sa.Integer()))",
            f"op.create_table('t{step}', sa.Column('id', sa.Integer(), primary_key=True), sa.Column('b', sa.BigInteger()))",
            f"op.create_index('i{step}', 't{step}', ['b'])",
            *([f"op.drop_column('orders', 'a{step - 1}')"] if step else []),
        )
        killed = killed_at(shop, step)
        shop.apply()
        for shard in ("s0", "s1"):
            assert f"a{step}" in columns(shop, shard)
            assert columns(shop, shard, f"t{step}") == {"id", "b"}
            assert set(states(shop, shard).values()) == {"done"}
        assert not sameness.compare(shop.fleet, shop.engines, [f"t{step}"])
        if not killed:
            break
        step += 1
    assert step >= 20  # else the sweep has missed most of them


def test_statements_that_commit_by_themselves_are_found_half_done(request, shop_on):
    shop = shop_on("mariadb")
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))", "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(ApplyError, match="Some of its statements may have taken effect"):
        shop.apply()
    assert states(shop) == {"r1": "begun"}
    assert states(shop, "s1") == {"r1": "announced"}
    assert "a" in columns(shop)
    (shop.history.folder / "r1.py").write_text(
        (shop.history.folder / "r1.py").read_text().replace("* FROM nowhere", "1")
    )
    lines = []
    shop.apply(tell=lambda *line: lines.append(line))
    assert ("s0", "r1 (Change) had begun and not ended: it is completed") in lines
    assert states(shop) == states(shop, "s1") == {"r1": "done"}


def test_a_failed_revision_leaves_nothing_where_ddl_is_in_transactions(shop_on):
    shop = shop_on("postgresql")
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))", "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(ApplyError, match='relation "nowhere" does not exist'):
        shop.apply()
    assert states(shop) == {"r1": "announced"}
    assert "a" not in columns(shop)


@pytest.mark.parametrize("product", SERVERS)
def test_writers_go_on_while_columns_and_indexes_are_added(shop_on, product):
    shop = shop_on(product)
    stop, written, faults = threading.Event(), {"s0": 0, "s1": 0}, []
    started = {name: threading.Event() for name in written}

    def write(shard):
        engine = database.connect(shop.urls[shard])
        try:
            while not stop.is_set():
                with database.writing(engine) as connection:
                    key = f"{shard}-{written[shard]}"
                    connection.exec_driver_sql("INSERT INTO orders (order_id, amount, slot) VALUES (%s, 1, 1)", (key,))
                written[shard] += 1
                started[shard].set()
        except Exception as error:  # noqa: BLE001 - any of them fails the test
            faults.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=write, args=(shard,)) for shard in written]
    for thread in threads:
        thread.start()
    assert all(event.wait(30) for event in started.values())
    for number in range(3):
        shop.add(
            f"op.add_column('orders', sa.Column('n{number}', sa.BigInteger()))",
            f"op.create_index('i{number}', 'orders', ['n{number}'])",
        )
    shop.apply()
    during = dict(written)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert all(during.values())
    for shard, count in written.items():
        with shop.engines[shard].connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == count
        assert {"n0", "n1", "n2"} <= columns(shop, shard)


@pytest.mark.parametrize("product", SERVERS)
def test_a_lock_that_is_held_for_ever_ends_the_apply_and_nothing_else(shop_on, product):
    shop = shop_on(product)
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    holder = database.connect(shop.urls["s0"])
    with database.writing(holder) as connection:
        connection.exec_driver_sql("INSERT INTO orders (order_id, slot) VALUES ('x', 1)")
        with pytest.raises(ApplyError, match=r"The lock was held for 1 s, by session \d+ of .*End what holds it"):
            shop.apply(SHORT)
        assert "a" not in columns(shop)
    holder.dispose()
    shop.apply()
    assert "a" in columns(shop) & columns(shop, "s1")


def open_rebalance(shop, shard):
    with database.writing(shop.engines[shard]) as connection:
        plan = json.dumps({"shard": shard, "shards": [{"name": "s0"}]})
        connection.execute(rebalances.insert().values(id="x", state="open", plan=plan))


def test_tables_are_not_changed_while_slots_move(shop):
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    open_rebalance(shop, "s1")
    with pytest.raises(ApplyError, match=r"shard s1: rebalance x of shards s0 is open.*shardctl rebalance finish"):
        shop.apply()
    assert "a" not in columns(shop)


def test_no_rebalance_begins_while_tables_are_changed(shop):
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    Run(shop.fleet, shop.history, shop.engines, Patience()).announce()
    with (
        pytest.raises(JournalError, match=r"its schema is being changed to revision r1.*shardctl migrate apply"),
        database.writing(shop.engines["s1"]) as connection,
    ):
        journal.begin(connection, shop.fleet, "s1")
    shop.apply()
    with database.writing(shop.engines["s1"]) as connection:
        journal.begin(connection, shop.fleet, "s1")
        assert connection.scalar(select(rebalances.c.state)) == "open"


def test_what_was_made_by_hand_is_left_alone_where_it_is_the_same_and_refused_where_not(shop):
    with database.writing(shop.engines["s0"]) as connection:
        connection.exec_driver_sql("ALTER TABLE orders ADD COLUMN a INTEGER")
    with database.writing(shop.engines["s1"]) as connection:
        connection.exec_driver_sql("ALTER TABLE orders ADD COLUMN a VARCHAR(20)")
    assert sameness.compare(shop.fleet, shop.engines)
    shop.add("op.add_column('orders', sa.Column('a', sa.Integer()))")
    with pytest.raises(
        ApplyError, match=r"shard s1: .*column a is there already, and its type is VARCHAR\(20\)"
    ) as refused:
        shop.apply()
    assert isinstance(refused.value, ApplyError)
    assert states(shop) == {"r1": "done"}


def test_what_is_there_is_dropped_however_the_revision_writes_its_name(shop):
    """MariaDB, MySQL and SQLite don't distinguish case; PostgreSQL writes it small unless it was quoted."""
    product = shop.engines["s0"].dialect.name
    for engine in shop.engines.values():
        with database.writing(engine) as connection:
            connection.exec_driver_sql("ALTER TABLE orders ADD COLUMN a INTEGER")
            connection.exec_driver_sql("CREATE INDEX by_a ON orders (a)")
            if product != "sqlite":
                connection.exec_driver_sql("ALTER TABLE orders ADD CONSTRAINT positive CHECK (amount > 0)")
    written = str if product == "postgresql" else str.upper
    shop.add(
        f"op.drop_index({written('by_a')!r}, 'orders')",
        *(() if product == "sqlite" else (f"op.drop_constraint({written('positive')!r}, 'orders', type_='check')",)),
        f"op.drop_column('orders', {written('a')!r})",
    )
    shop.apply()
    assert "a" not in columns(shop)
    with shop.engines["s0"].connect() as connection:
        assert not {"by_a", "positive"} & {
            entry["name"]
            for entry in (
                *inspect(connection).get_indexes("orders"),
                *inspect(connection).get_check_constraints("orders"),
            )
        }


@pytest.mark.parametrize(
    ("product", "there", "operation", "left"),
    [
        (
            "postgresql",
            "ALTER TABLE orders ADD CONSTRAINT apart EXCLUDE (amount WITH =)",
            "op.drop_constraint('apart', 'orders')",
            "SELECT count(*) FROM pg_constraint WHERE conname = 'apart'",
        ),
        (
            "sqlite",
            "CREATE INDEX doubled ON orders (amount * 2)",
            "op.drop_index('doubled', 'orders')",
            "SELECT count(*) FROM sqlite_master WHERE name = 'doubled'",
        ),
    ],
)
def test_what_sqlalchemy_does_not_list_is_dropped(shop_on, product, there, operation, left):
    shop = shop_on(product)
    for engine in shop.engines.values():
        with database.writing(engine) as connection:
            connection.exec_driver_sql(there)
    shop.add(operation)
    shop.apply()
    with shop.engines["s0"].connect() as connection:
        assert connection.exec_driver_sql(left).scalar() == 0


def test_an_index_that_is_built_concurrently_is_completed(shop_on):
    shop = shop_on("postgresql")
    with database.writing(shop.engines["s0"]) as connection:
        connection.exec_driver_sql("INSERT INTO orders (order_id, amount, slot) VALUES ('a', 1, 1), ('b', 1, 1)")
    shop.add("op.create_index('once', 'orders', ['amount'], unique=True, postgresql_concurrently=True)")
    with pytest.raises(ApplyError, match="could not create unique index"):
        shop.apply()
    assert states(shop) == {"r1": "begun"}
    with database.writing(shop.engines["s0"]) as connection:
        connection.exec_driver_sql("UPDATE orders SET amount = 2 WHERE order_id = 'b'")
    shop.apply()  # the invalid index is in the way
    with shop.engines["s0"].connect() as connection:
        assert connection.exec_driver_sql(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'once'::regclass"
        ).scalar()


def test_a_revision_that_takes_away_a_mapped_column_is_undone(shop_on):
    shop = shop_on("postgresql")
    shop.add("op.execute('ALTER TABLE orders DROP COLUMN amount')")
    with pytest.raises(ApplyError, match=r"it takes away what shards.yaml maps: orders.amount"):
        shop.apply()
    assert "amount" in columns(shop)


def test_a_consumer_waits_until_its_columns_are_there(shop):
    shop.map(", note: text")
    url = make_url(shop.urls["s0"])
    dialect, engine = sessions.dialect_of(url), sessions.engine_of(url, shop.fleet.shards[0].consumer)
    with pytest.raises(TransientError, match="table orders has no column note: `shardctl migrate plan` drafts it"):
        sessions.check_columns(engine, dialect, shop.fleet.message_types)
    shop.add("op.add_column('orders', sa.Column('note', sa.Text()))")
    shop.apply()
    sessions.check_columns(engine, dialect, shop.fleet.message_types)
    engine.dispose()


SLEEPING = {"postgresql": "SELECT pg_sleep(1)", "mariadb": "SELECT SLEEP(1)"}


@pytest.mark.parametrize("product", SERVERS)
def test_two_applies_at_once_apply_each_revision_once(shop_on, product):
    """Two processes: one of them waits for the other, or is refused and says by whom. No statement runs twice."""
    shop = shop_on(product)
    shop.add("op.create_table('runs', sa.Column('id', sa.Integer()))")
    shop.add(f"op.execute({SLEEPING[product]!r})", "op.execute('INSERT INTO runs VALUES (1)')")
    outcomes = applied_by_two(shop)
    assert {code for code, _ in outcomes} <= {0, 1}
    assert [code for code, _ in outcomes].count(0) >= 1, outcomes
    for code, message in outcomes:
        assert code == 0 or "`shardctl migrate apply` changes" in message, message
    for shard in ("s0", "s1"):
        with shop.engines[shard].connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar() == 1
        assert set(states(shop, shard).values()) == {"done"}


def test_an_index_that_another_apply_builds_is_left_to_it(shop_on):
    """An index that is being built concurrently looks like one whose build was killed."""
    shop = shop_on("postgresql")
    shop.add("op.create_index('once', 'orders', ['amount'], postgresql_concurrently=True)")
    holder = database.connect(shop.urls["s0"])
    with database.writing(holder) as connection:  # the index waits for this transaction
        connection.exec_driver_sql("INSERT INTO orders (order_id, amount, slot) VALUES ('a', 1, 1)")
        first = threading.Thread(target=shop.apply)
        first.start()
        until(lambda: states(shop) == {"r1": "begun"} and is_invalid(shop, "once"), what="an index under way")
        with pytest.raises(ApplyError, match="another `shardctl migrate apply` changes this shard"):
            shop.apply(SHORT)
    first.join()
    holder.dispose()
    assert states(shop) == states(shop, "s1") == {"r1": "done"}
    assert not is_invalid(shop, "once")


def is_invalid(shop, index):
    with shop.engines["s0"].connect() as connection:
        query = "SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE c.relname = %s AND NOT indisvalid"
        return connection.exec_driver_sql(query, (index,)).scalar() == 1


def applied_by_two(shop):
    """The exit code and the messages of two `migrate apply` that begin at once."""
    command = [sys.executable, "-m", "shardctl", "migrate", "apply", "--yes", "-f", str(shop.file)]
    for name, url in shop.urls.items():
        command += ["--database", f"{name}={url}"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate()[1] for process in processes]
    return [(process.returncode, message) for process, message in zip(processes, messages, strict=True)]

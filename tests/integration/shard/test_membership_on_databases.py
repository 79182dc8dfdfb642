"""Whose a database is, on PostgreSQL, MariaDB and SQLite: what `provision` records keeps everybody else's sessions away."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from consumer_kit import CONFIG
from outcomes_kit import Inboxes
from patience import PATIENCE_SECONDS
from products_kit import PRODUCTS, SERVERS, empty_database
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from consumer.database import sessions
from consumer.errors import TransientError
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.outcomes.effect import State
from shardctl.outcomes.watch import Watch
from shardctl.provision import ProvisionError, make_tables, provision_database, refuse_foreign
from shardctl.reader.reader import Reader
from shardctl.shard import database, membership
from shardctl.shard.membership import Membership
from shardctl.shard.takeover import NOBODY, Takeover
from shardctl.verification.verify import verify

pytestmark = pytest.mark.slow

FLEET = """
fleet: {fleet}
project: my-project
image: example.com/consumer:1.0
routing: {{slot_bits: 4}}
message_types:
  order: {{table: orders, key: order_id, columns: {{order_id: text}}}}
shards:
  - {{name: s0, slots: 0-7}}
  - {{name: s1, slots: 8-15}}
"""
ORDERS, STAGING = (fleet_from(parse(FLEET.format(fleet=name), "test")) for name in ("orders", "staging"))
S0 = Membership("orders", "s0")


@pytest.fixture(params=PRODUCTS)
def urls(request):
    with ExitStack() as databases:
        urls = {shard.name: databases.enter_context(empty_database(request, request.param)) for shard in ORDERS.shards}
        for shard in ORDERS.shards:
            provision_database(ORDERS, shard, urls[shard.name])
        yield urls


def test_each_table_that_is_made_is_named_once(urls):
    engine = database.connect(urls["s0"])
    with database.writing(engine) as connection:
        connection.execute(text(f"DROP TABLE {membership.table.name}"))
    engine.dispose()
    assert provision_database(ORDERS, ORDERS.shards[0], urls["s0"]).fields == (membership.table.name,)


def recorded(url):
    engine = database.connect(url)
    with database.snapshot(engine) as connection:
        member = membership.read(connection)
    engine.dispose()
    return member


def run(url, statement):
    engine = database.connect(url)
    with database.writing(engine) as connection:
        connection.execute(text(statement))
    engine.dispose()


def verified(fleet, urls):
    with database.connected(fleet.fleet, urls) as engines:
        return verify(fleet, engines)


def test_the_file_of_another_fleet_is_refused(urls):
    assert verified(ORDERS, urls).faults == ()
    with pytest.raises(
        database.DatabaseError, match=r"belongs to shard s0 of fleet orders, and was given as that of .* staging"
    ):
        verified(STAGING, urls)
    with pytest.raises(ProvisionError, match=r"(?s)shard s0: .*shard s1: .*--take-over orders/s1"):
        refuse_foreign(STAGING, urls, NOBODY)
    with pytest.raises(ProvisionError, match="belongs to shard s0 of fleet orders"):
        provision_database(STAGING, STAGING.shards[0], urls["s0"])
    assert recorded(urls["s0"]) == S0


def test_exchanged_urls_are_refused(urls):
    exchanged = {"s0": urls["s1"], "s1": urls["s0"]}
    with pytest.raises(database.DatabaseError, match=r"belongs to shard s1 .* given as that of shard s0"):
        verified(ORDERS, exchanged)
    with pytest.raises(ProvisionError, match="belongs to shard s1"):
        provision_database(ORDERS, ORDERS.shards[0], exchanged["s0"])


def test_the_second_who_provisions_a_database_is_refused(urls):
    """It can't be known whose an empty database is: the first `provision` makes it theirs."""
    run(urls["s0"], "DROP TABLE shardctl_shard")
    provision_database(STAGING, STAGING.shards[0], urls["s0"])
    with pytest.raises(ProvisionError, match="belongs to shard s0 of fleet staging"):
        provision_database(ORDERS, ORDERS.shards[0], urls["s0"])


def test_a_database_without_a_record_is_read_and_named(urls):
    run(urls["s0"], "DROP TABLE shardctl_shard")
    report = verified(ORDERS, urls)
    assert (report.faults, [shard.recorded for shard in report.shards]) == ((), [False, True])
    provision_database(ORDERS, ORDERS.shards[0], urls["s0"])
    assert recorded(urls["s0"]) == S0


def test_a_copy_is_taken_over(urls):
    for shard in STAGING.shards:
        make_tables(STAGING, shard, urls[shard.name], Takeover.of(["orders"]))
    assert verified(STAGING, urls).faults == ()
    with pytest.raises(database.DatabaseError, match="belongs to shard s0 of fleet staging"):
        verified(ORDERS, urls)


def test_a_consumer_gets_no_session_on_anothers_database_and_compares_in_no_transaction(urls):
    sent = []
    for own, refused in ((Membership("orders", "s1"), True), (S0, False)):
        url = make_url(urls["s0"])
        engine = sessions.engine_of(url, CONFIG.consumer, whose=own)
        event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
        dialect = sessions.dialect_of(url)
        for _ in range(2):
            if refused:
                with (
                    pytest.raises(TransientError, match="belongs to shard s0 of fleet orders"),
                    sessions.transaction(engine, dialect),
                ):
                    pass
            else:
                with sessions.transaction(engine, dialect) as connection:
                    connection.execute(text("SELECT 1"))
        engine.dispose()
    assert not [statement for statement in sent if membership.table.name in statement]


def test_a_reader_refuses_anothers_database(urls):
    engines = {name: database.connect(url) for name, url in urls.items()}
    try:
        with Reader(ORDERS, engines).session("o-1"):
            pass
        with (
            pytest.raises(database.DatabaseError, match=r"belongs to .* fleet orders"),
            Reader(STAGING, engines).session("o-1"),
        ):
            pass
    finally:
        for engine in engines.values():
            engine.dispose()


def test_what_became_of_a_write_is_unknown_to_a_gateway_of_another_fleet(urls):
    for fleet, state in ((STAGING, State.UNKNOWN), (ORDERS, State.NOT_SEEN)):
        with database.connected(fleet.fleet, urls) as engines:
            sought = Inboxes.of(fleet, engines).sought()
            waiter = Watch(fleet, engines).begin(sought, patient=False)
            assert waiter.future.result(PATIENCE_SECONDS).state is state


@pytest.mark.parametrize("product", SERVERS)
def test_who_may_not_read_the_record_goes_on(request, product):
    with empty_database(request, product) as url:
        provision_database(ORDERS, ORDERS.shards[0], url)
        owner, user = database.connect(url), "reader_of_lanes"
        kind, password = ("ROLE", "LOGIN PASSWORD") if product == "postgresql" else ("USER", "IDENTIFIED BY")
        try:
            with owner.begin() as connection:
                connection.exec_driver_sql(f"CREATE {kind} {user} {password} 'p'")
                connection.exec_driver_sql(f"GRANT SELECT ON shardctl_lanes TO {user}")
            own = make_url(url).set(username=user, password="p").render_as_string(hide_password=False)
            engine = database.connect(own, whose=Membership("orders", "s1"))
            with database.snapshot(engine) as connection:
                assert membership.read(connection) is None
                with pytest.raises(DBAPIError):
                    connection.exec_driver_sql("SELECT * FROM shardctl_shard")
            engine.dispose()
        finally:
            with owner.begin() as connection:
                if product == "postgresql":
                    connection.exec_driver_sql(f"DROP OWNED BY {user}")
                connection.exec_driver_sql(f"DROP {kind} {user}")
            owner.dispose()

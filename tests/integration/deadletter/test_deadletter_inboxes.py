"""What the desk asks of a shard's inbox and changes there, on each kind of database."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from deadletter_kit import FLEET, TYPES
from names_kit import keyed, name_of
from patience import PATIENCE_SECONDS
from products_kit import PRODUCTS, empty_database
from sqlalchemy import insert, select, update

from shardctl.deadletter.inboxes import Allowed, Inboxes
from shardctl.deadletter.letter import Message, note_of, read
from shardctl.deadletter.reading import Found
from shardctl.deadletter.replay import Report, replay
from shardctl.fleet.keyspace import slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.shard import changes, database, lanes, schema
from shardctl.shard.database import DatabaseError
from shardctl.shard.schema import LaneState
from shardctl.wire import identity

pytestmark = pytest.mark.slow
FLEET_SPEC = fleet_from(parse(FLEET.format(project="desk-inbox", types=TYPES, topic_bits=""), "test"))
NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
KEY = next(key for key in map("Key {}".format, range(99)) if slot_of(key, 6) < 32)
SLOT = slot_of(KEY, 6)


@pytest.fixture(scope="module", params=PRODUCTS)
def url(request):
    with empty_database(request, request.param) as url:
        yield url


@pytest.fixture(scope="module")
def made(url):
    engine = database.connect(url)
    schema.create(engine, FLEET_SPEC.message_types, FLEET_SPEC.shards[0].slots, 1)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(made):
    with database.writing(made) as connection:
        connection.execute(schema.inbox.delete())
    return made


def inboxes(url, **allowed):
    return Inboxes(FLEET_SPEC, {"s0": str(url)}, Allowed(**allowed), now=lambda: NOW)


def letter(number, *, key=KEY, ago=timedelta(hours=1), kind="thing", ident=None, slot=SLOT, operation=None):
    """As a consumer of s0 has set it aside."""
    written = int((NOW - ago).timestamp() * 1_000_000) + number
    attributes = {
        "partition_key": key, "message_type": kind, "slot": f"{slot:06b}", "idempotency_key": ident or f"i{number}",
        "shardctl-reason": "constraint", "shardctl-error": "x", "shardctl-shard": "s0", "shardctl-slot": str(slot),
        "shardctl-message-id": str(number), "shardctl-publish-time-us": str(written), "shardctl-subscription": "shop-s0-g1",
    }  # fmt: skip
    if operation:
        attributes["operation"] = operation
    message = Message(f"{1000 + number}", written + 1_000_000, "", attributes, b"{}")
    return read(FLEET_SPEC, "shop-dead", message, stray=False)


def record(
    engine, ident, outcome, *, key=KEY, kind="thing", ago=timedelta(hours=1), plus_us=0, slot=SLOT, fingerprint=None
):
    row = {
        "slot": slot, "identity": keyed(kind, ident, slot), "key_hash": identity.key_hash(kind, key),
        "fingerprint": fingerprint, "outcome": outcome,
        "published": schema.published(int((NOW - ago).timestamp()) * 1_000_000 + plus_us),
    }  # fmt: skip
    with database.writing(engine) as connection:
        connection.execute(insert(schema.inbox).values(row))


def known(engine):
    with database.snapshot(engine) as connection:
        rows = connection.execute(select(schema.inbox.c.identity, schema.inbox.c.outcome))
        return {name_of(row.identity): row.outcome for row in rows}


def codes(verdicts):
    return [verdict.code for verdict in verdicts]


def test_only_what_is_dead_is_let_go_of_and_only_once(url, engine):
    letters = [letter(number) for number in range(4)]
    record(engine, "i0", "dead")
    record(engine, "i1", "applied", ago=timedelta(hours=2))
    record(engine, "i2", "parked")
    wanted = ["replay", "applied", "parked", "unrecorded"]
    with inboxes(url) as asked:
        assert codes(asked.survey(letters)) == wanted
        assert known(engine) == {"i0": "dead", "i1": "applied", "i2": "parked"}
        assert codes(asked.let_go(letters)) == wanted
    assert known(engine) == {note_of(letters[0]).hex(): "replayed", "i1": "applied", "i2": "parked"}
    with inboxes(url) as asked:  # a second run, before the copy was applied, and one after it failed again
        assert codes(asked.let_go(letters[:1])) == ["replay"]
        record(engine, "i0", "dead")
        assert codes(asked.let_go(letters[:1])) == ["replay"]
    assert known(engine) == {note_of(letters[0]).hex(): "replayed", "i1": "applied", "i2": "parked"}


def test_what_is_let_go_of_is_logged_where_the_slot_is_copied_meanwhile(url, engine):
    """The row that goes, and the note that comes: else the slot's next database takes the write for dead for ever."""
    letters = [letter(number) for number in range(2)]
    record(engine, "i0", "dead")
    with database.writing(engine) as connection:
        lanes.begin_logs(connection, [SLOT], 1)
    try:
        with inboxes(url) as asked:
            assert codes(asked.let_go(letters)) == ["replay", "unrecorded"]
        with database.snapshot(engine) as connection:
            rows = connection.execute(select(schema.changes.c.slot, schema.changes.c.table_name, schema.changes.c.key))
            logged = sorted((slot, table, *json.loads(key)) for slot, table, key in rows)
    finally:
        with database.writing(engine) as connection:
            lanes.end_logs(connection)
        changes.empty(engine)
    of_letter = (letters[0].write_identity, note_of(letters[0]))
    assert logged == sorted((SLOT, "shardctl_inbox", row.hex()) for row in of_letter)


def test_a_letter_that_uses_another_writes_key_touches_nothing_of_it(url, engine):
    """Neither is the other's row let go of, nor is the letter dropped because the other took effect."""
    letters = [letter(number) for number in range(3)]
    for dead_letter, outcome, says in zip(letters, ("dead", "applied", "dead"), (7, 7, None), strict=True):
        record(engine, dead_letter.idempotency_key, outcome, fingerprint=says)
    with inboxes(url) as asked:
        assert codes(asked.let_go(letters)) == ["key_reused", "key_reused", "replay"]
    assert known(engine) == {"i0": "dead", "i1": "applied", note_of(letters[2]).hex(): "replayed"}


def test_a_second_letter_of_one_write_stays_until_it_took_effect(url, engine):
    """Two replicas have set the same write aside: while one's copy is on its way the other's letter must not go."""
    first, second = letter(1), letter(2, ident="i1")
    record(engine, "i1", "dead")
    with inboxes(url) as asked:
        assert codes(asked.let_go([first, second])) == ["replay", "unrecorded"]
        record(engine, "i1", "applied")
        assert codes(asked.let_go([second])) == ["applied"]


def test_behind_a_letter_that_can_not_go_yet_none_of_its_key_goes(url, engine):
    record(engine, "i2", "dead")
    other = letter(3, key=KEY.lower(), slot=slot_of(KEY.lower(), 6))
    with inboxes(url) as asked:
        assert codes(asked.let_go([letter(1)])) == ["unrecorded"]
        assert codes(asked.let_go([letter(2)])) == ["behind"]
    assert known(engine) == {"i2": "dead"}
    assert other.key != KEY


def test_keys_that_differ_in_case_are_different_keys(url, engine):
    """MySQL's collations would take a later write of the one for a later write of the other."""
    record(engine, "i1", "dead")
    record(engine, "later", "applied", key=KEY.upper(), ago=timedelta())
    with inboxes(url) as asked:
        assert codes(asked.survey([letter(1)])) == ["replay"]
        record(engine, "later too", "applied", ago=timedelta())
        assert codes(asked.survey([letter(1)])) == ["overtaken"]
    with inboxes(url, overtaken=True) as asked:
        assert codes(asked.survey([letter(1)])) == ["replay"]


@pytest.mark.parametrize(("seconds", "wanted"), [(-1, "replay"), (0, "overtaken"), (1, "overtaken")])
def test_a_write_of_the_letters_own_second_may_be_later(url, engine, seconds, wanted):
    """The inbox keeps no part of a second."""
    record(engine, "i500000", "dead")
    record(engine, "other", "applied", plus_us=seconds * 1_000_000)
    with inboxes(url) as asked:
        assert codes(asked.survey([letter(500_000)])) == [wanted]


@pytest.mark.parametrize(
    ("kind", "rival", "wanted"),
    [
        ("thing", "thing", "overtaken"),
        ("thing", "edition", "replay"),
        ("edition", "edition", "replay"),
        ("entry", "entry", "replay"),
    ],
)
def test_what_a_later_write_means(url, engine, kind, rival, wanted):
    record(engine, "i1", "dead", kind=kind)
    record(engine, "later", "applied", kind=rival, ago=timedelta())
    with inboxes(url) as asked:
        assert codes(asked.survey([letter(1, kind=kind)])) == [wanted]


def test_a_replayed_write_counts_from_when_it_was_written(url, engine):
    first, second, third = letter(1), letter(2), letter(3)
    for dead_letter in (first, second, third):
        record(engine, dead_letter.idempotency_key, "dead")
    with inboxes(url) as asked:
        assert codes(asked.let_go([second])) == ["replay"]
        record(engine, second.idempotency_key, "applied", ago=timedelta())  # the copy, published now
        assert codes(asked.survey([first, third])) == ["overtaken", "replay"]


def test_what_the_inbox_has_forgotten(url, engine):
    old = letter(1, ago=timedelta(days=99))
    with inboxes(url) as asked:
        assert codes(asked.survey([old])) == ["forgotten"]
        record(engine, "i1", "dead", ago=timedelta(days=99))
        assert codes(asked.survey([old])) == ["replay"]
    with inboxes(url, unrecorded=True) as asked:
        assert codes(asked.let_go([letter(2, ago=timedelta(days=99)), letter(3)])) == ["forgotten", "replay"]
    with inboxes(url, unremembered=True) as asked:
        assert codes(asked.let_go([letter(2, ago=timedelta(days=99))])) == ["replay"]


@pytest.mark.parametrize(("hours", "code"), [(7 * 24 - 2, "unrecorded"), (7 * 24, "forgotten")])
def test_the_inbox_may_know_a_write_by_a_copy_published_a_day_before_the_letters(url, engine, hours, code):
    """It keeps that for 8 days. The letter is of the second copy, which no consumer has met."""
    with inboxes(url) as asked:
        assert codes(asked.survey([letter(1, ago=timedelta(hours=hours))])) == [code]


def test_a_letter_whose_replay_took_effect_long_ago_is_not_replayed_again(url, engine):
    """Its ack was lost. The copy's row is forgotten, and the note of the replay is still there, as long as the letter may be."""
    old = letter(1, ago=timedelta(days=20))
    record(engine, "i1", "dead", ago=timedelta(days=20))
    with inboxes(url) as asked:
        assert codes(asked.let_go([old])) == ["replay"]
        record(engine, "i1", "applied", ago=timedelta(days=10))  # the copy
        assert codes(asked.survey([old])) == ["applied"]
        with database.writing(engine) as connection:
            connection.execute(schema.inbox.delete().where(schema.inbox.c.outcome.is_(None)))
        assert codes(asked.survey([old])) == ["forgotten"]
        assert codes(asked.let_go([old])) == ["forgotten"]


@pytest.mark.parametrize(
    ("operation", "code"),
    [("update", "replay"), ("delete", "replay"), ("upsert", "forgotten"), ("insert", "forgotten")],
)
def test_a_forgotten_write_that_the_rows_version_refuses_does_no_harm(url, engine, operation, code):
    """But one that could bring back a row that was deleted since does."""
    with inboxes(url) as asked:
        old = letter(1, ago=timedelta(days=99), kind="edition", operation=operation)
        assert codes(asked.survey([old])) == [code]


def test_a_slot_on_its_way_is_left_alone_and_the_fence_is_shared(url, engine):
    record(engine, "i1", "dead")
    lane = (schema.lanes.c.slot == SLOT) & (schema.lanes.c.generation == 1)
    with database.writing(engine) as connection:
        lanes.take_fence_alone(connection)
        connection.execute(update(schema.lanes).where(lane).values(state=LaneState.LEFT))
    try:
        with inboxes(url) as asked:
            assert codes(asked.let_go([letter(1)])) == ["moving"]
            assert known(engine) == {"i1": "dead"}
    finally:
        with database.writing(engine) as connection:
            connection.execute(update(schema.lanes).where(lane).values(state=LaneState.ACTIVE))


def test_who_changes_slots_waits_for_a_letter_to_be_let_go_of(url, engine):
    """Else the slot's inbox would be copied with the row that is deleted behind it."""
    record(engine, "i1", "dead")
    began, ended = threading.Event(), []

    def let_go():
        with inboxes(url) as asked:
            began.set()
            ended.append(codes(asked.let_go([letter(1)])))

    with database.writing(engine) as connection:
        lanes.take_fence_alone(connection)
        waiting = threading.Thread(target=let_go)
        waiting.start()
        assert began.wait(PATIENCE_SECONDS)
        waiting.join(0.3)
        assert ended == []
        connection.execute(update(schema.lanes).where(schema.lanes.c.slot == SLOT).values(state=LaneState.LEFT))
    waiting.join(30)
    with database.writing(engine) as connection:
        connection.execute(update(schema.lanes).where(schema.lanes.c.slot == SLOT).values(state=LaneState.ACTIVE))
    assert ended == [["moving"]]
    assert known(engine) == {"i1": "dead"}


def test_many_desks_on_the_same_letters(url, engine):
    letters = [letter(number) for number in range(40)]
    for dead_letter in letters[:30]:
        record(engine, dead_letter.idempotency_key, "dead")
    verdicts_of_desks, lock = [], threading.Lock()

    def work():
        with inboxes(url, unrecorded=True) as asked:
            verdicts = codes(asked.let_go(letters))
        with lock:
            verdicts_of_desks.append(verdicts)

    desks = [threading.Thread(target=work) for _ in range(4)]
    for desk in desks:
        desk.start()
    for desk in desks:
        desk.join(60)
    assert verdicts_of_desks == [["replay"] * 40] * 4
    assert known(engine) == {note_of(dead_letter).hex(): "replayed" for dead_letter in letters}


def test_a_database_that_does_not_answer_is_reported_without_its_password(tmp_path):
    urls = {"s0": "postgresql://u:hunter2@127.0.0.1:1/x"}
    with Inboxes(FLEET_SPEC, urls, Allowed(), sleep=lambda _: None) as asked, pytest.raises(DatabaseError) as raised:
        asked.survey([letter(1)])
    assert "hunter2" not in str(raised.value)


def test_behind_a_letter_whose_slot_was_moving_none_of_its_key_goes(url, engine):
    """Though the slot has arrived by the time of the next part."""
    record(engine, "i1", "dead")
    record(engine, "i2", "dead")
    lane = (schema.lanes.c.slot == SLOT) & (schema.lanes.c.generation == 1)
    with inboxes(url) as asked:
        for state, number, code in ((LaneState.LEFT, 1, "moving"), (LaneState.ACTIVE, 2, "behind")):
            with database.writing(engine) as connection:
                lanes.take_fence_alone(connection)
                connection.execute(update(schema.lanes).where(lane).values(state=state))
            assert codes(asked.let_go([letter(number)])) == [code]
    assert known(engine) == {"i1": "dead", "i2": "dead"}


def test_a_letter_that_may_go_only_after_the_survey_overwrites_no_later_write(url, engine):
    """A consumer publishes a letter before it commits that the write is dead, together with later writes of the key."""
    published, report = [], Report()

    class Between:
        def __init__(self, asked):
            self._asked, self.let_go = asked, asked.let_go

        def survey(self, letters):
            verdicts = self._asked.survey(letters)
            record(engine, "i1", "dead")
            record(engine, "later", "applied", ago=timedelta())
            return verdicts

    class Nowhere:
        def publish(self, topics, messages):
            published.extend(messages)
            return {}

    with inboxes(url) as asked:
        entries = [Found(letter(1))]
        replay(FLEET_SPEC, entries, lambda _: Message("1", 0, "", {}, b"{}"), Between(asked), Nowhere(), report)
    assert codes(verdict for _, verdict in report.left) == ["overtaken"]
    assert (published, report.replayed) == ([], 0)
    assert known(engine) == {"i1": "dead", "later": "applied"}

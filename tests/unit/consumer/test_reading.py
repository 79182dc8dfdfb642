"""Deliveries, dead letters, settings, logs and probes: what comes in is read, or refused in words."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import urllib.error
import urllib.request

import pytest
from consumer_kit import CONFIG, SLOT_BITS, raw, write
from google.api_core.exceptions import NotFound
from google.pubsub_v1 import PubsubMessage, ReceivedMessage
from patience import PATIENCE_SECONDS

from consumer.delivery import NO_SLOT, check_slot, decode
from consumer.errors import PermanentError, TransientError
from consumer.intake.pull import _Stream
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.process.settings import load
from consumer.pubsub.deadletters import DeadLetterTopic
from shardctl.errors import UsageError
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.supervision.logs import JsonFormatter

SLOT = digits_of(slot_of("1", SLOT_BITS), SLOT_BITS)
GOOD = {"slot": SLOT, "partition_key": "1", "message_type": "customer"}


def received(attributes, data=b"{}", ordering_key=""):
    message = PubsubMessage(
        data=data,
        attributes=attributes,
        ordering_key=ordering_key,
        message_id="m1",
        publish_time={"seconds": 5, "nanos": 7_999},
    )
    return ReceivedMessage.pb(ReceivedMessage(ack_id="a1", message=message))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        pytest.param({}, "bad_slot", id="no attributes"),
        pytest.param({"slot": ""}, "bad_slot", id="slot empty"),
        pytest.param({"slot": SLOT[1:]}, "bad_slot", id="slot short"),
        pytest.param({"slot": SLOT + "0"}, "bad_slot", id="slot long"),
        pytest.param({"slot": "2" * SLOT_BITS}, "bad_slot", id="slot of other digits"),
        pytest.param({"slot": "0" * (SLOT_BITS - 1) + "\uff11"}, "bad_slot", id="slot of wide digits"),
        pytest.param({"slot": " " + SLOT[1:]}, "bad_slot", id="slot with a blank"),
        pytest.param({"partition_key": ""}, "bad_key", id="key empty"),
        pytest.param({"partition_key": "k" * 256}, "bad_key", id="key long"),
        pytest.param({"partition_key": "k\x00"}, "bad_key", id="key with NUL"),
        pytest.param({"idempotency_key": "k" * 256}, "bad_key", id="idempotency key long"),
        pytest.param({"idempotency_key": "\x00"}, "bad_key", id="idempotency key with NUL"),
        pytest.param({"message_type": ""}, "unknown_type", id="type empty"),
        pytest.param({"message_type": "nobody"}, "unknown_type", id="type unknown"),
        pytest.param({"operation": "UPSERT"}, "bad_operation", id="operation in capitals"),
        pytest.param({"operation": "drop table"}, "bad_operation", id="operation unknown"),
        pytest.param({"shardctl-barrier": "r1"}, "reserved_attribute", id="write that says it is a barrier"),
        pytest.param({"shardctl-barrier": "r1", "idempotency_key": "k" * 256}, "bad_key", id="and has a long key"),
    ],
)
def test_what_cant_be_read_carries_its_fault(attributes, reason):
    delivery = decode(received(GOOD | attributes if attributes else {}), "s", 1, CONFIG, 1.0)
    assert delivery.fault.reason == reason
    assert (delivery.slot == NO_SLOT) == (reason == "bad_slot")
    assert delivery.idempotency_key
    assert "\x00" not in delivery.idempotency_key


def test_a_good_message_is_read():
    delivery = decode(received(GOOD | {"operation": "delete", "idempotency_key": "i1"}), "s", 1, CONFIG, 1.0)
    assert delivery.fault is None
    assert (delivery.slot, delivery.partition_key, delivery.operation) == (slot_of("1", SLOT_BITS), "1", "delete")
    assert (delivery.idempotency_key, delivery.message_id, delivery.publish_time_us) == ("i1", "m1", 5_000_007)


MARKER = {"slot": SLOT, "message_type": "shardctl-barrier", "shardctl-barrier": "r1"} | {
    "shardctl-shard": "s0", "shardctl-generation": "1", "shardctl-token": "t"
}  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "key", "ends_lane"),
    [
        pytest.param({}, SLOT, True, id="of this lane"),
        pytest.param({"shardctl-shard": "s1"}, SLOT, False, id="of another shard"),
        pytest.param({"shardctl-generation": "2"}, SLOT, False, id="of another generation"),
        pytest.param({"shardctl-generation": "9" * 5_000}, SLOT, False, id="of a generation without end"),
        pytest.param({"shardctl-generation": "-1"}, SLOT, False, id="of no generation"),
        pytest.param({}, "", False, id="a copy without order"),
    ],
)
def test_a_barrier_is_no_write_and_may_end_the_lane_that_it_names(attributes, key, ends_lane):
    delivery = decode(received(MARKER | attributes, b"", key), "s", 1, CONFIG, 1.0)
    assert delivery.fault is None
    assert delivery.barrier.token == "t"
    assert delivery.ends_lane == ends_lane


def test_without_an_idempotency_key_the_message_id_is_it():
    assert decode(received(GOOD), "s", 1, CONFIG, 1.0).idempotency_key == "m1"


def test_a_slot_that_isnt_its_keys_is_refused():
    with pytest.raises(PermanentError) as refused:
        check_slot(raw("customer", b"{}", "1", slot=(slot_of("1", SLOT_BITS) + 1) % 64), CONFIG)
    assert refused.value.reason == "wrong_slot"


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(2, 1_000), (100, 25)], ids=["messages", "bytes"])
def test_a_stream_has_room_while_both_bounds_are_kept(max_messages, max_bytes):
    stream = _Stream("s", 1, max_messages, max_bytes)
    held = [raw("customer", b"x" * 15, "1") for _ in range(2)]
    stream.hold(held[:1])
    assert stream.room.is_set()
    stream.hold(held[1:])
    assert not stream.room.is_set()
    stream.release(held[0])
    assert stream.room.is_set()


class FakeTopic:
    def __init__(self, fault=None):
        self.requests, self.fault = [], fault

    async def publish(self, *, topic, messages, **_):
        if self.fault:
            raise self.fault
        assert topic == "projects/test-project/topics/data-writes-dead"
        self.requests.append(list(messages))


def dead(data=b"{}", **attributes):
    made = raw("customer", data, "1")
    made.message = PubsubMessage.pb(PubsubMessage(data=data, attributes=attributes, ordering_key="01"))
    made.fault = PermanentError("bad_json", "it's no JSON")
    return made


def published(*deliveries):
    topic = FakeTopic()
    asyncio.run(DeadLetterTopic(topic, CONFIG).publish(deliveries))
    return topic.requests


def test_a_dead_letter_tells_why_and_keeps_what_it_was():
    [[letter]] = published(dead(b"data", color="red", idempotency_key="mine"))
    assert (letter.data, letter.ordering_key) == (b"data", "01")
    assert letter.attributes["color"] == "red"
    assert letter.attributes["shardctl-reason"] == "bad_json"
    assert letter.attributes["shardctl-error"] == "it's no JSON"
    assert letter.attributes["shardctl-shard"] == "s0"


def test_a_dead_letter_stays_within_what_the_service_takes():
    made = dead(**{f"a{number}": "ü" * 512 for number in range(99)}, googclient_schemaencoding="JSON")
    made.fault = PermanentError("bad_json", "ü" * 5_000)
    [[letter]] = published(made)
    assert len(letter.attributes) == 100
    assert all(len(value.encode()) <= 1024 for value in letter.attributes.values())
    assert not any(name.startswith("goog") for name in letter.attributes)


@pytest.mark.parametrize(
    ("count", "size", "requests"),
    [
        pytest.param(1_001, 2, 2, id="messages"),
        pytest.param(5, 4_000_000, 3, id="bytes"),
        pytest.param(1, 9_990_000, 1, id="one"),
    ],
)
def test_requests_stay_within_what_the_service_takes_and_in_order(count, size, requests):
    made = [dead(b"x" * size, number=str(number)) for number in range(count)]
    sent = published(*made)
    assert len(sent) == requests
    assert [int(each.attributes["number"]) for request in sent for each in request] == list(range(count))


def test_a_missing_dead_letter_topic_means_again():
    with pytest.raises(TransientError, match="data-writes-dead"):
        asyncio.run(DeadLetterTopic(FakeTopic(NotFound("…")), CONFIG).publish([dead()]))


# --- settings ---------------------------------------------------------------------------------------------------------

ENVIRONMENT = {"DATABASE_URL": "postgresql://u:secret@h/d", "REDIS_URL": "redis://:secret@h:6379/0"}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "shard.json"
    path.write_text(CONFIG.model_dump_json())
    return path


def test_settings_are_read(config_file):
    settings = load(config_file, ENVIRONMENT | {"PORT": "9", "POD_NAME": "p"})
    assert settings.config == CONFIG
    assert settings.database_url.drivername == "postgresql+psycopg"
    assert (settings.port, settings.replica, settings.pubsub_endpoint) == (9, "p", None)
    assert settings.host == ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
    assert load(config_file, ENVIRONMENT | {"HOST": "127.0.0.1"}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        pytest.param({"DATABASE_URL": ""}, "DATABASE_URL", id="no database"),
        pytest.param({"DATABASE_URL": "secret"}, "DATABASE_URL", id="database no URL"),
        pytest.param({"DATABASE_URL": "postgresql://u:secret@h:secret/d"}, "DATABASE_URL", id="database port"),
        pytest.param({"DATABASE_URL": "postgresql+nodriver://u:secret@h/d"}, "DATABASE_URL", id="database driver"),
        pytest.param({"DATABASE_URL": "oracle+secret://u:secret@h/d"}, "DATABASE_URL", id="database unknown"),
        pytest.param({"REDIS_URL": ""}, "REDIS_URL", id="no Redis"),
        pytest.param({"REDIS_URL": "secret"}, "REDIS_URL", id="Redis no URL"),
        pytest.param({"REDIS_URL": "redis://:secret/x@h:1"}, "REDIS_URL", id="Redis port"),
        pytest.param({"REDIS_URL": "http://secret@h"}, "REDIS_URL", id="Redis scheme"),
        pytest.param({"PORT": "secret"}, "PORT", id="port no number"),
        pytest.param({"PORT": "65536"}, "PORT", id="port too high"),
    ],
)
def test_bad_settings_are_named_and_no_password_is_shown(config_file, environment, named):
    with pytest.raises(UsageError, match=named) as refused:
        load(config_file, ENVIRONMENT | environment)
    if named != "PORT":
        assert "secret" not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__cause__ is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"fleet": 1}'])
def test_a_file_that_is_no_configuration(tmp_path, content):
    path = tmp_path / "shard.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"shard\.json"):
        load(path, ENVIRONMENT)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        load(tmp_path / "nothing", ENVIRONMENT)


# --- logs and probes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["plain", "ünï 🦆", "new\nline", "half \ud800 pair", "\x00"])
def test_every_log_line_is_one_json_object(text):
    record = logging.LogRecord("consumer", logging.WARNING, "", 0, "said: %s", (text,), None)
    record.action, record.slot = "test", 7
    line = JsonFormatter(shard="s0").format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["severity"], read["action"], read["slot"], read["shard"]) == ("WARNING", "test", 7, "s0")


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True)])
def test_a_line_about_a_traced_write_stands_beside_its_trace(flags, sampled):
    record = logging.LogRecord("consumer", logging.WARNING, "", 0, "set aside", (), None)
    record.traceparent = f"00-{7:032x}-{8:016x}-{flags}"
    read = json.loads(JsonFormatter("my-project").format(record))
    assert read["logging.googleapis.com/trace"] == f"projects/my-project/traces/{7:032x}"
    assert (read["logging.googleapis.com/spanId"], read["logging.googleapis.com/trace_sampled"]) == (
        f"{8:016x}",
        sampled,
    )
    record.traceparent = "nonsense"
    assert not [name for name in json.loads(JsonFormatter("my-project").format(record)) if "trace" in name]


def test_a_traceback_stays_in_its_line():
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record = logging.LogRecord("consumer", logging.ERROR, "", 0, "x", (), sys.exc_info())
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(record))["stack_trace"]


def get(health, path, host="127.0.0.1"):
    try:
        with urllib.request.urlopen(f"http://{host}:{health.port}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_probes_answer_pods_of_either_family(host):
    health = Health("::", 0, Metrics(), lambda: None)
    try:
        assert get(health, "/ready", host) == (200, "ready\n")
    finally:
        health.close()


def test_probes_and_metrics_answer():
    why = ["still starting"]
    metrics = Metrics()
    health = Health("127.0.0.1", 0, metrics, lambda: why[0])
    try:
        assert get(health, "/health") == (200, "ok\n")
        assert get(health, "/ready") == (503, "not ready: still starting\n")
        why[0] = None
        assert get(health, "/ready") == (200, "ready\n")
        metrics.applied.inc(3)
        assert "shardctl_messages_applied_total 3.0" in get(health, "/metrics")[1]
        assert get(health, "/else")[0] == 404
        health._last_beat -= 60
        assert get(health, "/health")[0] == 503
    finally:
        health.close()


def test_writes_of_the_kit_are_sound():
    assert write("customer", {"customer_id": "1"}).fault is None

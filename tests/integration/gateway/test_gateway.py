"""The gateway as a pod runs it, on the embedded broker: what it accepts and refuses, and what it does with hostile clients."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from gateway_kit import fleet
from gateway_process import running, until

from shardctl.fleet.keyspace import digits_of, slot_of

pytestmark = pytest.mark.slow
FLEET = fleet("{max_body_bytes: 4096}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gateway"), FLEET) as made:
        until(lambda: made[1].http.get("/ready").status_code == 200, what="ready")
        yield made
        assert made[1].errors() == []


@pytest.fixture
def broker(pair):
    yield pair[0]
    pair[0].pulled(0)


@pytest.fixture
def gateway(broker, pair):
    return pair[1]


def problem_of(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    return problem


def test_a_write_is_on_its_topic_when_it_is_answered(gateway, broker):
    answer = gateway.write("order", b'{"order_id": "o-1", "amount": 1.10}', key='"k-1"')
    slot = slot_of("o-1", 6)
    assert answer.status_code == 202
    (message,) = broker.pulled(1)
    assert answer.json() == {"id": message.message_id, "slot": slot, "shard": "s0" if slot < 32 else "s1"}
    assert message.data == b'{"order_id": "o-1", "amount": 1.10}', "every digit as it came"
    assert message.ordering_key == digits_of(slot, 6)
    attributes = dict(message.attributes)
    assert attributes.pop("timestamp").endswith("Z")
    assert attributes == {
        "slot": digits_of(slot, 6),
        "partition_key": "o-1",
        "message_type": "order",
        "operation": "upsert",
        "idempotency_key": "k-1",
    }


def test_the_query_sets_what_the_body_leaves_open(gateway, broker):
    params = {"key": "käse", "operation": "delete", "timestamp": "2026-05-04T02:00:00+02:00"}
    assert gateway.write("stock/level", {"note": 5}, params=params).status_code == 202
    (message,) = broker.pulled(1)
    values = [message.attributes[name] for name in ("partition_key", "operation", "timestamp", "message_type")]
    assert values == ["käse", "delete", "2026-05-04T00:00:00Z", "stock/level"]


@pytest.mark.parametrize(
    ("kind", "body", "more", "status", "where"),
    [
        ("order", {"order_id": 5}, {}, 400, {"pointer": "#/order_id"}),
        ("order", {"order_id": "a", "nope": 1}, {}, 400, {"pointer": "#/nope"}),
        ("order", {"order_id": "a"}, {"params": {"operation": "merge"}}, 400, {"parameter": "operation"}),
        ("order", {"order_id": "a"}, {"params": {"colour": "red"}}, 400, {"parameter": "colour"}),
        ("order", {"order_id": "a"}, {"key": "k" * 256}, 400, {"header": "Idempotency-Key"}),
        ("order", [1], {}, 400, {"pointer": "#"}),
        ("order", b"", {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "a"', {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": NaN}', {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "a", "amount": 1e999}', {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "a", "order_id": "b"}', {}, 400, {"pointer": "#/order_id"}),
        ("order", b'{"order_id": "\xff"}', {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "\\ud800"}', {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "a", "lines": ' + b"[" * 1_900 + b"]" * 1_900 + b"}", {}, 400, {"pointer": "#"}),
        ("order", b'{"order_id": "a", "lines": ' + b"[" * 600 + b"]" * 600 + b"}", {}, 400, {"pointer": "#"}),
        ("counter", b'{"id": 1' + b"0" * 400 + b', "day": 1, "revision": 1}', {}, 400, {"pointer": "#"}),
        ("order", {"order_id": "a", "status": "x" * 5_000}, {}, 413, None),
        ("order", {"order_id": "a"}, {"headers": {"Content-Type": "text/plain"}}, 415, None),
        ("order", {"order_id": "a"}, {"headers": {"Content-Type": "application/json; charset=latin-1"}}, 415, None),
        ("order", {"order_id": "a"}, {"headers": {"Content-Encoding": "gzip"}}, 415, None),
        ("nobody", {"order_id": "a"}, {}, 404, None),
    ],
)
def test_what_is_wrong_is_refused_by_name(gateway, kind, body, more, status, where):
    answer = gateway.write(kind, body, **more)
    assert answer.status_code == status, answer.text
    problem = problem_of(answer)
    if where:
        (error,) = problem["errors"]
        assert {name: value for name, value in error.items() if name != "detail"} == where


def test_other_paths_and_methods(gateway):
    assert problem_of(gateway.http.get("/v1/nothing"))["status"] == 404
    answer = gateway.http.get("/v1/writes/order")
    assert (problem_of(answer)["status"], answer.headers["allow"]) == (405, "POST")


def test_a_batch_reports_each_line_in_order(gateway, broker):
    good = {"type": "order", "body": {"order_id": "b-1"}, "idempotency_key": "i"}
    responses = gateway.batch(
        good,
        b"",
        b"not JSON",
        {"type": "order", "body": {"order_id": 5}},
        {"type": "nobody", "body": {}},
        {**good, "key": 5},
        {"type": "order", "body": {"order_id": "x" * 15_000}},
        {**good, "operation": "delete", "idempotency_key": "j"},
    )
    assert [(response["line"], response["status"]) for response in responses] == [
        (1, 202), (3, 400), (4, 400), (5, 404), (6, 400), (7, 413), (8, 202),
    ]  # fmt: skip
    assert responses[1]["errors"][0]["pointer"] == "#"
    assert responses[2]["errors"][0]["pointer"] == "#/order_id"
    assert responses[4]["errors"][0]["pointer"] == "#/key"
    assert [message.message_id for message in broker.pulled(2)] == [responses[0]["id"], responses[-1]["id"]]


def test_a_batch_keeps_each_slots_order(gateway, broker):
    lines = [{"type": "order", "body": {"order_id": f"o-{n % 40}", "amount": n}} for n in range(4_000)]
    responses = gateway.batch(*lines)
    assert [response["line"] for response in responses] == list(range(1, 4_001))
    assert {response["status"] for response in responses} == {202}
    seen: dict[str, int] = {}
    for message in broker.pulled(4_000):
        number = json.loads(message.data)["amount"]
        assert seen.get(message.ordering_key, -1) < number, "a slot's writes came out of order"
        seen[message.ordering_key] = number


def test_sequential_writes_of_a_slot_keep_their_order(gateway, broker):
    ids = [gateway.write("order", {"order_id": "same", "amount": n}).json()["id"] for n in range(30)]
    assert [message.message_id for message in broker.pulled(30)] == ids


def test_a_client_that_reads_nothing_until_it_has_sent_all_is_served(gateway, broker):
    count = 8_000
    lines = b"".join(b'{"type":"order","body":{"order_id":"w-%d"}}\n' % n for n in range(count))
    with socket.create_connection(gateway.address) as connection:
        connection.settimeout(20)
        head = (
            b"POST /v1/writes HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
        )
        connection.sendall(head % len(lines) + lines)
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            text += connection.recv(1 << 20)
    assert text.count(b'"status":202') == count
    broker.pulled(count)


def _talk(gateway, text, *, close=True):
    with socket.create_connection(gateway.address) as connection:
        connection.settimeout(10)
        connection.sendall(text)
        if close:
            return b""
        received = b""
        while part := connection.recv(65_536):
            received += part
            if b"\r\n\r\n" in received:
                break
        return received


HEAD = b"POST /v1/writes/order HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BATCH = b"POST /v1/writes HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"


def test_a_chunked_body_without_end_is_cut(gateway):
    with socket.create_connection(gateway.address) as connection:
        connection.settimeout(10)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(1_000):
                connection.sendall(b"400\r\n" + b"[" * 1024 + b"\r\n")
            answer = connection.recv(4_096)
        except (BrokenPipeError, ConnectionResetError):
            return  # hung up on before all of it was sent
    assert b" 413 " in answer


def test_an_endless_line_of_a_batch_is_never_held(gateway, broker):
    before = gateway.metric("in_flight_bytes")
    with socket.create_connection(gateway.address) as connection:
        connection.settimeout(10)
        connection.sendall(BATCH + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"4000\r\n" + b"[" * 0x4000 + b"\r\n")
        line = b'\n{"type":"order","body":{"order_id":"after"}}\n'
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line))
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65_536)
    assert b'"line":1,"status":413' in received
    assert b'"line":2,"status":202' in received
    assert gateway.metric("in_flight_bytes") == before
    broker.pulled(1)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b'Content-Length: 16\r\n\r\n{"order_id":"x"}',
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        BATCH + b'Content-Length: 1000\r\n\r\n{"type":"order","body":{"order_id":"x"}}\n{',
        BATCH + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["in the body", "before the answer", "in a chunk", "in a batch", "before a batch"],
)
def test_a_client_that_goes_away_leaves_nothing_behind(gateway, text):
    threads = [threading.Thread(target=_talk, args=(gateway, text)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: gateway.metric("writes_in_flight") == 0, what="nothing in flight")
    until(lambda: gateway.metric("in_flight_bytes") == 0, what="no bytes in flight")
    assert gateway.write("order", {"order_id": "still here"}).status_code == 202


def test_a_client_that_asks_for_leave_gets_it(gateway):
    with socket.create_connection(gateway.address) as connection:
        connection.settimeout(10)
        connection.sendall(BATCH + b"Content-Length: 41\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(4_096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"type":"order","body":{"order_id":"e1"}}')
        assert b" 200 " in connection.recv(4_096)


def test_the_document_and_the_metrics_are_there(gateway):
    document = gateway.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/writes/stock/level" in document["paths"]
    assert gateway.http.get("/health").status_code == 200
    assert gateway.metric("ready") == 1
    assert gateway.metric('writes_refused_total{status="413"}') >= 0

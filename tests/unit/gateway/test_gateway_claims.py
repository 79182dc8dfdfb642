"""An idempotency key stands for one write: what else comes with it is refused, and each client has its own."""

from __future__ import annotations

import asyncio
import json
import time
from hashlib import sha256

import httpx
import pytest
from gateway_kit import fleet
from google.pubsub_v1 import PublishRequest

from shardctl.gateway.app import application
from shardctl.gateway.auth import authenticator_of
from shardctl.gateway.claims import Claim, Claims
from shardctl.gateway.context import GatewayContext
from shardctl.gateway.pubsub import PublishRefusedError
from shardctl.gateway.ratelimit import Buckets
from shardctl.wire import identity

ORDER = {"order_id": "o-1", "status": "paid"}
OPEN = fleet()
GUARDED = fleet("{auth: {kind: keys, secret: {name: n, key: k}}}")


class Topics:
    """Takes what it is given, unless it is to fail."""

    def __init__(self):
        self.messages, self.refuses = [], False

    async def probe(self):
        return None

    async def publish(self, slot, messages, timeout_seconds):
        if self.refuses:
            raise PublishRefusedError("no")
        published = PublishRequest.pb().FromString(messages).messages
        self.messages += published
        return [f"m{slot}" for _ in published]


class Gateway:
    def __init__(self, fleet, tmp_path):
        keys = tmp_path / "keys"
        keys.write_text("".join(f"{name} {sha256(name.encode()).hexdigest()}\n" for name in ("shop", "till")))
        self.topics = Topics()
        guarded = fleet.gateway is not None and fleet.gateway.auth.kind == "keys"
        self.desk = GatewayContext(
            fleet, self.topics, authenticator_of(fleet.gateway, keys if guarded else None, Buckets(time.monotonic))
        )
        transport = httpx.ASGITransport(application(self.desk))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def write(self, body=ORDER, *, kind="order", key="k", client=None, **params):
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if client:
            headers["Authorization"] = f"Bearer {client}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._http.post(f"/v1/writes/{kind}", content=data, headers=headers, params=params)

    async def batch(self, *lines):
        text = "\n".join(map(json.dumps, lines)).encode()
        answer = await self._http.post("/v1/writes", content=text, headers={"Content-Type": "application/x-ndjson"})
        return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture
def play(tmp_path):
    """Runs `script(gateway)` on a gateway of that fleet; the messages that it published."""

    def run(script, fleet=OPEN):
        async def whole():
            gateway = Gateway(fleet, tmp_path)
            await script(gateway)
            return gateway.topics.messages

        return asyncio.run(whole())

    return run


def test_the_same_request_again_is_taken_again(play):
    async def script(gateway):
        assert [(await gateway.write()).status_code for _ in range(2)] == [202, 202]

    assert len(play(script)) == 2


OTHERS = {
    "body": {"body": {**ORDER, "status": "open"}},
    "operation": {"operation": "delete"},
    "routing key": {"key_of": "other"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_key_that_stands_for_another_write_is_a_422(play, what):
    async def script(gateway):
        changed = dict(OTHERS[what])
        if "key_of" in changed:
            changed = {"body": {"order_id": changed["key_of"], "status": "paid"}}
        await gateway.write()
        answer = await gateway.write(**changed)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        problem = answer.json()
        assert (problem["status"], problem["title"]) == (422, "Unprocessable Entity")
        assert problem["errors"] == [{"detail": problem["detail"], "header": "Idempotency-Key"}]
        assert "sent before with another operation, routing key or body" in problem["detail"]
        assert (await gateway.write()).status_code == 202

    assert len(play(script)) == 2


def test_each_client_and_each_type_has_keys_of_its_own(play):
    async def script(gateway):
        for client in ("shop", "till"):
            assert (await gateway.write({**ORDER, "status": client}, client=client)).status_code == 202
        counter = {"id": 7, "day": 1, "revision": 2}
        assert (await gateway.write(counter, kind="counter", client="shop")).status_code == 202
        assert (await gateway.write({**ORDER, "status": "x"}, client="shop")).status_code == 422

    messages = play(script, GUARDED)
    assert [message.attributes["caller"] for message in messages] == ["shop", "till", "shop"]


def test_where_nobody_is_asked_there_is_no_caller(play):
    async def script(gateway):
        await gateway.write()

    (message,) = play(script)
    assert "caller" not in message.attributes


def test_a_line_of_a_batch_is_refused_by_itself(play):
    async def script(gateway):
        line = {"type": "order", "body": ORDER, "idempotency_key": "k"}
        responses = await gateway.batch(line, line, {**line, "operation": "delete"}, {**line, "idempotency_key": "j"})
        assert [response["status"] for response in responses] == [202, 202, 422, 202]
        assert responses[2]["errors"][0]["pointer"] == "#/idempotency_key"

    assert len(play(script)) == 3


def test_a_write_that_pubsub_refused_frees_its_key(play):
    async def script(gateway):
        gateway.topics.refuses = True
        assert (await gateway.write()).status_code == 400
        gateway.topics.refuses = False
        assert (await gateway.write({**ORDER, "status": "open"})).status_code == 202

    play(script)


def test_a_claim_is_what_the_consumer_will_know_the_write_by(play):
    encoder = GatewayContext(GUARDED, Topics(), None).encoder
    body = json.dumps(ORDER).encode()
    message = encoder.encode(
        encoder.kinds["order"],
        ORDER,
        body,
        None,
        {"idempotency_key": "k", "timestamp": "2026-05-04T00:00:00Z"},
        client="shop",
    )
    assert message.claim[:2] == (identity.of_key("shop", "order", "k"), identity.fingerprint("upsert", "o-1", body))


def test_what_is_remembered_is_bounded_and_the_last_used_stays():
    claims = Claims(most=2)
    first, two, three = (Claim(bytes([n]), n, ("header", "x")) for n in range(3))
    assert claims.take(first)
    assert claims.take(two)
    assert claims.take(first)
    assert claims.take(three)  # the second is forgotten
    assert not claims.take(first._replace(fingerprint=9))
    assert claims.take(two._replace(fingerprint=9))

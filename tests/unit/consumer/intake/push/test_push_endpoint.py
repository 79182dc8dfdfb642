"""The endpoint's answers, by the application itself: who is let in, and with what."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import orjson
import pytest
from consumer_kit import config

from consumer.intake.push import endpoint
from consumer.intake.push.caller import Caller
from consumer.intake.push.endpoint import Endpoint
from consumer.intake.push.intake import PushIntake
from consumer.observability.metrics import Metrics
from shardctl.oidc import KeysUnavailableError, TokenError

ACCOUNT = "push@my-project.iam.gserviceaccount.com"
GOOD = {"Authorization": "Bearer good"}
MESSAGE = {"messageId": "1", "publishTime": "2021-02-26T19:13:55Z", "data": ""}
BODY = orjson.dumps({"message": MESSAGE, "subscription": "projects/test-project/subscriptions/shop-s0-g1"})
PATH = "/s0/shop-s0-g1"


class Tokens:
    """Tokens are known by what they are called."""

    async def claims(self, token):
        match token:
            case "good":
                return {"email": ACCOUNT, "email_verified": True}
            case "another's":
                return {"email": "other@my-project.iam.gserviceaccount.com", "email_verified": True}
            case "unverified":
                return {"email": ACCOUNT, "email_verified": False}
            case "nobody's":
                return {}
            case "unjudged":
                raise KeysUnavailableError("no keys")
            case _:
                raise TokenError("the token has expired")


class Bench:
    def __init__(self, monkeypatch=None, **consumer):
        self.metrics, self.got = Metrics(), []
        self.endpoint = Endpoint("127.0.0.1", 0, Caller(Tokens(), ACCOUNT), ("slot", "Kind"), self.metrics)
        self.intake = PushIntake(config(**consumer), self.endpoint, time.monotonic, self.metrics)
        self.answer = self.intake.ack

    def deliver(self, deliveries):
        self.got += deliveries
        asyncio.get_running_loop().create_task(self.answer(deliveries))

    async def ask(self, method="POST", path=PATH, body=BODY, **headers):
        sent = {"Content-Type": "application/json", **GOOD, **{n.replace("_", "-"): v for n, v in headers.items()}}
        transport = httpx.ASGITransport(self.endpoint._server.config.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://push") as client:
            return await client.request(method, path, content=body, headers={n: v for n, v in sent.items() if v})


def play(scenario, **consumer):
    async def run():
        bench = Bench(**consumer)
        bench.endpoint._intake, bench.intake._deliver, bench.intake._open = bench.intake, bench.deliver, True
        try:
            return await scenario(bench)
        finally:
            bench.endpoint._socket.close()

    return asyncio.run(run())


def status(**request):
    return play(lambda bench: bench.ask(**request)).status_code


def test_a_push_that_is_done_with_is_answered_without_content():
    async def scenario(bench):
        answer = await bench.ask()
        assert (answer.status_code, answer.content) == (204, b"")
        assert bench.got[0].generation == 1

    play(scenario)


def test_a_push_that_is_handed_back_is_refused():
    async def scenario(bench):
        bench.answer = bench.intake.hand_back
        assert (await bench.ask()).status_code == 503
        assert bench.metrics.registry.get_sample_value("shardctl_push_refused_total", {"status": "503"}) == 1

    play(scenario)


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        pytest.param("", 401, id="none"),
        pytest.param("Basic Z29vZA==", 401, id="another scheme"),
        pytest.param("Bearer", 401, id="empty"),
        pytest.param("Bearer bad", 401, id="bad"),
        pytest.param("Bearer another's", 403, id="another's"),
        pytest.param("Bearer unverified", 403, id="unverified"),
        pytest.param("Bearer nobody's", 403, id="nobody's"),
        pytest.param("Bearer unjudged", 503, id="keys out of reach"),
        pytest.param("bearer good", 204, id="good"),
    ],
)
def test_only_the_named_account_is_admitted(authorization, expected):
    async def scenario(bench):
        answer = await bench.ask(Authorization=authorization)
        assert answer.status_code == expected
        assert len(bench.got) == (expected == 204)
        if expected == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer"

    play(scenario)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param({"path": "/s0/shop-s0-g2"}, 404, id="another generation"),
        pytest.param({"path": "/"}, 404, id="no path"),
        pytest.param({"path": "/deep/down/shop-s0-g1/"}, 204, id="some other path before it"),
        pytest.param({"method": "GET"}, 405, id="GET"),
        pytest.param({"method": "PUT"}, 405, id="PUT"),
        pytest.param({"Content_Type": "text/plain"}, 415, id="text"),
        pytest.param({"Content_Type": ""}, 415, id="no type"),
        pytest.param({"Content_Type": "Application/JSON; charset=utf-8"}, 204, id="JSON otherwise written"),
        pytest.param({"body": b"{"}, 400, id="no JSON"),
        pytest.param({"body": b""}, 400, id="empty"),
        pytest.param({"Content_Length": str(17 * 1024**2)}, 413, id="said to be too long"),
        pytest.param({"Content_Length": "9" * 40}, 413, id="an absurd length"),
        pytest.param({"path": "/s0/shop-s0-g1", "Authorization": "", "body": b"{"}, 401, id="the token comes first"),
    ],
)
def test_what_doesnt_fit_is_refused(request_, expected):
    assert status(**request_) == expected


def test_a_body_longer_than_it_says_is_cut_off(monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_BODY_BYTES", 100)

    async def stream():
        for _ in range(50):
            yield b"x" * 10

    assert status(body=stream()) == 413


def test_an_unwrapped_push_has_any_type():
    async def scenario(bench):
        headers = {
            "Content_Type": "", "x_goog_pubsub_message_id": "1", "x_goog_pubsub_publish_time": "2021-02-26T19:13:55Z",
        }  # fmt: skip
        assert (await bench.ask(body=b"raw", kind="order", **headers)).status_code == 204
        assert bench.got[0].message.data == b"raw"
        assert dict(bench.got[0].message.attributes) == {"Kind": "order"}

    play(scenario)


def test_a_pause_and_a_full_hand_are_refused_at_once():
    async def scenario(bench):
        bench.intake.pause()
        assert (await bench.ask()).status_code == 503
        bench.intake.resume()
        inlet = bench.intake.inlets["shop-s0-g1"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(bench.intake.admitted(inlet, 1))
            assert (await bench.ask()).status_code == 429
        assert (await bench.ask()).status_code == 204
        assert (inlet.messages, inlet.bytes) == (0, 0)

    play(scenario, max_outstanding_messages=1)

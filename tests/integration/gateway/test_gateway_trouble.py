"""A gateway whose Pub/Sub hangs, goes away and comes back; one that is stopped; and one that asks who is there."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_kit import fleet
from gateway_process import Broker, Gateway, running, until
from oidc_kit import Issuer, token
from patience import PATIENCE_SECONDS

pytestmark = pytest.mark.slow
FLEET = fleet("{publish_timeout: 1s, max_in_flight_writes: 4, drain_timeout: 10s}")


def order(number):
    return {"order_id": f"o-{number}"}


def test_trouble_with_pubsub_is_reported_and_passes(tmp_path):
    with running(tmp_path, FLEET) as (broker, gateway), ThreadPoolExecutor(8) as threads:
        assert gateway.write("order", order(1)).status_code == 202

        broker.send(signal.SIGSTOP)  # it hangs: connections stay, answers don't come
        hanging = [threads.submit(gateway.write, "order", order(n)) for n in range(4)]
        until(lambda: gateway.metric("writes_in_flight") == 4, what="four writes in flight")
        answer = gateway.write("order", order(9))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        for future in hanging:
            answer = future.result()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "Idempotency-Key" in answer.json()["detail"]
        assert gateway.metric("writes_in_flight") == 0
        broker.send(signal.SIGCONT)
        until(lambda: gateway.write("order", order(1)).status_code == 202, what="taken again")

        port = int(broker.host.rpartition(":")[2])
        broker.process.kill()  # it is gone
        broker.process.wait()
        assert gateway.write("order", order(1)).status_code == 503
        responses = gateway.batch(*[{"type": "order", "body": order(1)}] * 3)
        assert [response["status"] for response in responses] == [503] * 3
        with Broker(tmp_path, FLEET, port):
            until(lambda: gateway.write("order", order(1)).status_code == 202, what="taken by the new broker")


def test_it_is_not_ready_before_pubsub_answers(tmp_path):
    with Gateway(tmp_path, FLEET, "127.0.0.1:1") as gateway:
        answer = gateway.http.get("/ready")
        assert answer.status_code == 503
        until(lambda: "UNAVAILABLE" in gateway.http.get("/ready").text, what="the reason")
        assert gateway.http.get("/health").status_code == 200


def test_sigterm_ends_what_was_begun_and_no_more(tmp_path):
    with running(tmp_path, FLEET) as (broker, gateway), ThreadPoolExecutor(4) as threads:
        until(lambda: gateway.http.get("/ready").status_code == 200, what="ready")
        broker.send(signal.SIGSTOP)
        single = threads.submit(gateway.write, "order", order(1))
        batch = socket.create_connection(gateway.address)
        batch.settimeout(10)
        batch.sendall(
            b"POST /v1/writes HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        line = json.dumps({"type": "order", "body": order(2)}).encode() + b"\n"
        batch.sendall(b"%x\r\n%b\r\n" % (len(line), line))
        until(lambda: gateway.metric("writes_in_flight") == 2, what="two in flight")
        gateway.send(signal.SIGTERM)
        until(lambda: "stopping" in gateway.log.read_text(), what="the signal")
        time.sleep(0.2)
        assert gateway.process.poll() is None, "it must finish what it has begun"
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
            until(lambda: socket.create_connection(gateway.address).close() or False, seconds=PATIENCE_SECONDS)
        broker.send(signal.SIGCONT)
        assert single.result().status_code == 202
        text = b""
        while part := batch.recv(65_536):
            text += part
        assert b'"line":1,"status":202' in text
        assert b'"line":2,"status":503' in text, "the client learns where the reading ended"
        assert gateway.process.wait(PATIENCE_SECONDS) == 0
        assert gateway.errors() == []


def test_only_those_with_a_good_token_write_what_they_may(tmp_path):
    with Issuer("k1", "ec1") as issuer:
        auth = f"kind: oidc, issuer: 'https://issuer.test', audience: aud, jwks_url: '{issuer.url}'"
        guarded = fleet("{auth: {" + auth + ", clients: {shop@x.test: {types: [order], rate_limit: 3}, me: {}}}}")
        with running(tmp_path, guarded) as (_, gateway):

            def status(kind="order", authorization=None):
                headers = {} if authorization is None else {"Authorization": authorization}
                body = order(1) if kind == "order" else {"id": "d", "at": "2026-05-04"}
                answer = gateway.write(kind, body, headers=headers)
                return answer.status_code

            shop = token("ec1", sub="other", email="shop@x.test", email_verified=True)
            assert status() == 401
            assert status(authorization="Basic YTpi") == 401
            assert status(authorization="Bearer nonsense") == 401
            assert status(authorization=f"Bearer {token(exp=time.time() - 60)}") == 401
            assert status(authorization=f"Bearer {token('k2', kid='k1')}") == 401
            assert status(authorization=f"Bearer {token(aud='other')}") == 401
            assert status(authorization=f"Bearer {token(sub='stranger')}") == 403
            assert status(authorization=f"Bearer {token(sub='x', email='shop@x.test', email_verified=False)}") == 403
            assert status(authorization=f"Bearer {token()}") == 202
            assert status(authorization=f"Bearer {shop}") == 202
            assert status("daily", authorization=f"Bearer {shop}") == 403
            assert 429 in {status(authorization=f"Bearer {shop}") for _ in range(6)}
            line = {"type": "daily", "body": {"id": "d", "at": "2026-05-04"}}
            (response,) = gateway.batch(line, headers={"Authorization": f"Bearer {shop}"})
            assert response["status"] == 403
            assert shop not in gateway.log.read_text()

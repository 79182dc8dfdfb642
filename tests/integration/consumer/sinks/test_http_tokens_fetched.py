"""HTTP backends with tokens: the sink in a real store, a backend that verifies JWTs, a token server; all on loopback."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
import subprocess
import sys
import time
from datetime import timedelta

import jwt
import pytest
import trustme
from http_kit import Backend, Place, Reply
from patience import PATIENCE_SECONDS
from token_kit import CLIENT, SECRET, TokenServer

from consumer.errors import SlotsWaitError
from consumer.sinks.http.clienttokens import MAX_ANSWER_BYTES, ClientTokens
from consumer.sinks.http.credentials import CredentialsError
from consumer.sinks.http.tokens import TokenError
from shardctl.fleet.settings.httpauth import HttpAuth
from shardctl.supervision import logs

pytestmark = pytest.mark.slow


@pytest.fixture
def server():
    with TokenServer() as server:
        yield server


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def secrets(tmp_path, authority):
    folder = tmp_path / "secrets"
    for name, keys in {
        "ca": {"ca.crt": authority.cert_pem.bytes()},
        "client": {"client_id": CLIENT.encode(), "client_secret": SECRET.encode()},
    }.items():
        (folder / name).mkdir(parents=True)
        for key, value in keys.items():
            (folder / name / key).write_bytes(value)
    return folder


@pytest.fixture
def backend(authority, server):
    """Accepts calls with a token of the server's for its audience: `backend`, or its own URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Backend(context=context) as backend:
        audiences = ("backend", backend.url)

        def answer(call):
            header = call.headers.get("authorization", "")
            return Reply(200 if any(server.accepts(header, audience) for audience in audiences) else 401)

        backend.answer = answer
        yield backend


@pytest.fixture
def place(tmp_path, backend, secrets):
    places = []
    patient = {"timeout": timedelta(seconds=30), "statement_timeout": timedelta(seconds=300)}

    def make(auth, **settings):
        settings = {**patient, **settings}
        places.append(Place(tmp_path, backend.url, f", ca_secret: ca, auth: {auth}", secrets=secrets, **settings))
        return places[-1]

    yield make
    for made in places:
        made.close()


def oauth2(server, more=""):
    return f'{{kind: oauth2, secret: client, token_url: "{server.url}/token"{more}}}'


def settle(place, *writes):
    """Settle, and again while the batch is to be tried again, as a replica does."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return place.database.settle(*writes)
        except SlotsWaitError:
            assert time.monotonic() < end
            time.sleep(0.02)


def waits(place, *writes, match):
    with pytest.raises(SlotsWaitError, match=match):
        place.database.settle(*writes)


@pytest.mark.parametrize("client_auth", ["basic", "post"])
def test_one_token_serves_all_calls(place, server, backend, client_auth):
    p = place(oauth2(server, f", client_auth: {client_auth}, scopes: [a, b:c], audience: backend"))
    assert settle(p, *(p.call(f"k{number}", f"k{number}") for number in range(20))).applied == 20
    settle(p, p.call("later", "later"))
    (asked,) = server.asked
    assert (asked.fields["grant_type"], asked.fields["scope"]) == ("client_credentials", "a b:c")
    assert asked.fields["audience"] == "backend"
    assert ("client_secret" in asked.fields) is (client_auth == "post")
    assert len({call.headers["authorization"] for call in backend.calls}) == 1


def test_tokens_that_end_under_load_fail_no_write(place, server, backend):
    server.lifetime_seconds = 2.0
    p = place(oauth2(server))
    keys, end = [], time.monotonic() + PATIENCE_SECONDS
    while len({call.headers["authorization"] for call in backend.calls}) < 3:
        assert time.monotonic() < end
        batch = [f"{len(keys)}-{number}" for number in range(8)]
        keys += batch
        settle(p, *(p.call(key, key) for key in batch))
    assert dict(backend.effects) == dict.fromkeys(keys, 1)
    assert "refused" not in p.outcomes()


def test_a_token_that_is_revoked_is_replaced_within_the_call(place, server, backend):
    p = place(oauth2(server))
    settle(p, p.call("a", "a"))
    server.era += 1  # as when the server changes its key: no token of before is accepted
    assert p.database.settle(p.call("b", "b")).applied == 1
    assert backend.asked() == ["a", "b", "b"]
    assert len(server.asked) == 2
    assert p.outcomes() == {"ok": 2}


def test_a_backend_that_refuses_every_token_gets_no_stream_of_them(place, server, backend):
    backend.answer = lambda _: Reply(401)
    p = place(oauth2(server), breaker={"failures": 2}, attempts=2)
    for _ in range(3):
        waits(p, p.call("a", "a"), match="answered 401 Unauthorized")
    assert len(server.asked) == 2
    backend.answer = lambda _: Reply(200)


def test_a_token_server_that_is_down_keeps_writes_and_the_backend_is_not_called(place, server, backend, caplog):
    caplog.set_level(logging.INFO)
    server.stop()
    p = place(oauth2(server), attempts=1, breaker={"failures": 1})
    for _ in range(5):
        waits(p, p.call("a", "a"), match=r"the token endpoint http://127.0.0.1:\d+ can't be reached: ConnectError")
    assert backend.calls == []
    assert p.outcomes() == {}
    missing = functools.partial(p.metrics.registry.get_sample_value, "shardctl_http_token_missing", {"type": "call"})
    assert missing() == 1
    server.start()
    assert settle(p, p.call("a", "a")).applied == 1
    assert missing() == 0
    assert "no call is made and writes are kept until it returns a token" in caplog.text
    assert f"the token endpoint {server.url} works again" in caplog.text


def test_a_wrong_client_is_reported_and_its_rotated_secret_is_used(place, server, backend, secrets, caplog):
    for name in logs.NOISY:
        caplog.set_level(logging.WARNING, name)  # as `logs.configure` does in a process
    caplog.set_level(logging.DEBUG)
    (secrets / "client" / "client_secret").write_text("wr0ng")
    p = place(oauth2(server), attempts=1, breaker={"failures": 1})
    waits(p, p.call("a", "a"), match="answered 401 Unauthorized with invalid_client: does the Secret hold its client")
    assert "with invalid_client" in caplog.text
    (secrets / "client" / "client_secret").write_text(SECRET)
    assert settle(p, p.call("a", "a")).applied == 1
    shown = caplog.text + repr(vars(p.http)) + repr(vars(p.http._backends["call"]._caller))
    token = backend.calls[0].headers["authorization"].partition(" ")[2]
    assert not [text for text in ("wr0ng", "hush", token) if text in shown]


def test_a_secret_without_the_client_ends_the_start(place, server, secrets):
    (secrets / "client" / "client_id").unlink()
    with pytest.raises(CredentialsError, match="client/client_id: can't be read"):
        place(oauth2(server))


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((200, b"{}"), "a token|an error of its own"),
        ((200, b"[]"), "answered 200 OK, and no token"),
        ((200, b"<html>hush</html>"), "answered 200 OK, and no token"),
        ((200, b"[" * 100_000), "failed by a bug: RecursionError|and no token"),
        ((200, b'{"access_token": "a\\nb"}'), "no header can hold"),
        ((200, b'{"access_token": 7}'), "no header can hold"),
        ((200, b'{"access_token": "t", "token_type": "mac"}'), "another type than Bearer"),
        ((200, b'{"access_token": "t", "expires_in": "soon"}'), "a token that can't be read"),
        ((200, b'{"access_token": "t", "expires_in": -5}'), "ended already"),
        ((302, b""), "answered 302 Found, and no token"),
        ((500, b'{"access_token": "t"}'), "answered 500 Internal Server Error, and no token"),
        ((400, b'{"error": "invalid_scope"}'), "answered 400 Bad Request with invalid_scope"),
        ((400, b'{"error": "hush"}'), "an error of its own"),
        ((200, b" " * (MAX_ANSWER_BYTES + 1)), "answered more than 262,144 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_answers_of_a_token_server(place, server, backend, reply, says):
    server.reply = reply
    p = place(oauth2(server))
    backend.answer = lambda _: Reply()
    with pytest.raises(SlotsWaitError, match=says) as raised:
        p.database.settle(p.call("a", "a"))
    assert "hush" not in str(raised.value)
    assert backend.calls == []
    assert not [asked for asked in server.asked if asked.path == "/elsewhere"]


def test_a_token_server_of_another_authority_gets_no_secret(secrets, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with Backend(context=context) as other:
        auth = HttpAuth(kind="oauth2", secret="client", token_url=f"{other.url}/token", ca_secret="ca")
        with pytest.raises(TokenError, match="the certificate is refused"):
            asyncio.run(ClientTokens(auth, secrets).fetch())
        assert other.calls == []


# --- Google --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path, server, monkeypatch):
    path = tmp_path / "key.json"
    path.write_text(server.service_account())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


@pytest.mark.usefixtures("key_file")
def test_an_id_token_is_for_the_backends_address(place, server, backend):
    p = place("google")
    assert settle(p, p.call("a", "a"), p.call("b", "b")).applied == 2
    assert len(server.asked) == 1
    token = backend.calls[0].headers["authorization"].removeprefix("Bearer ")
    assert jwt.decode(token, options={"verify_signature": False})["aud"] == backend.url


@pytest.mark.usefixtures("key_file")
def test_a_role_that_is_missing_is_no_fault_of_the_writes(place, backend):
    """Cloud Run and Identity-Aware Proxy answer 403 themselves until the service account has the role."""
    accepts = backend.answer
    backend.answer = lambda _: Reply(403)
    p = place("google", breaker={"failures": 1, "open": timedelta(milliseconds=50)}, attempts=1)
    waits(p, p.call("a", "a"), match="answered 403 Forbidden")
    backend.answer = accepts
    assert settle(p, p.call("a", "a")).applied == 1


@pytest.mark.usefixtures("key_file")
def test_a_google_that_refuses_keeps_writes(place, server, backend):
    server.reply = (400, b'{"error": "invalid_grant", "error_description": "hush"}')
    p = place("google", attempts=1, breaker={"failures": 1})
    with pytest.raises(SlotsWaitError, match=r"the ID token for https.* is refused.*Google service account") as raised:
        p.database.settle(p.call("a", "a"))
    assert "hush" not in str(raised.value)
    assert backend.calls == []
    server.reply = None
    assert settle(p, p.call("a", "a")).applied == 1


_FETCH = """
import asyncio
from consumer.sinks.http.googletokens import GoogleTokens
from consumer.sinks.http.tokens import Tokens

async def main():
    tokens = Tokens(GoogleTokens("https://run.example.com"))
    try:
        print(await tokens.header())
    except Exception as error:
        print(type(error).__name__, error)

asyncio.run(main())
"""


def fetched(metadata_server):
    """What a process prints whose metadata server is there: google-auth reads its address once, at its import."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "GCE_"))}
    environment |= {"GCE_METADATA_HOST": metadata_server, "GCE_METADATA_IP": metadata_server, "NO_PROXY": "*"}
    run = subprocess.run(
        [sys.executable, "-c", _FETCH], env=environment, capture_output=True, text=True, check=True, timeout=240
    )
    return run.stdout.strip()


def test_the_metadata_server_is_asked_for_an_id_token(server):
    header = fetched(f"127.0.0.1:{server.port}")
    assert server.accepts(header, "https://run.example.com")
    (asked,) = (asked for asked in server.asked if "identity" in asked.path)
    assert "audience=https" in asked.path


def test_without_a_metadata_server_it_is_said_what_a_pod_needs(server):
    server.stop()
    output = fetched(f"127.0.0.1:{server.port}")
    server.start()
    assert output.startswith("TokenError the ID token for https://run.example.com can't be fetched: no metadata")
    assert "Workload Identity" in output

"""The HTTP sink in a real store, against a real backend on loopback."""

import logging
import sqlite3
import ssl
import threading
import time
from datetime import timedelta
from http.server import ThreadingHTTPServer

import orjson
import pytest
import trustme
from http_kit import Backend, Place, Reply
from patience import PATIENCE_SECONDS

from consumer.errors import SlotsWaitError
from consumer.sinks.http import sink, sink_for
from consumer.sinks.http.credentials import CredentialsError
from examples.backend import Taken, handler_of
from shardctl.fleet.spec_errors import SpecError
from shardctl.supervision import logs

pytestmark = pytest.mark.slow


@pytest.fixture
def backend():
    with Backend() as backend:
        yield backend


@pytest.fixture
def place(tmp_path, backend):
    made = []

    def make(url=None, more="", **settings):
        made.append(Place(tmp_path, url or f"{backend.url}/take?token=hush", more, **settings))
        return made[-1]

    yield make
    for place_made in made:
        place_made.close()


def until(condition, seconds=PATIENCE_SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def settle(place, *writes, seconds=PATIENCE_SECONDS):
    """Settle, and again while the batch is to be tried again, as a replica does."""
    end = time.monotonic() + seconds
    while True:
        try:
            return place.database.settle(*writes)
        except SlotsWaitError:
            assert time.monotonic() < end
            time.sleep(0.02)


def in_turn(*replies):
    """The replies one after the other, the last for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def by_key(**replies):
    left = {key: list(listed) for key, listed in replies.items()}

    def answer(call):
        mine = left.get(call.key)
        return (mine.pop(0) if len(mine) > 1 else mine[0]) if mine else Reply()

    return answer


# --- what is sent --------------------------------------------------------------------------------------------------------


def test_a_write_arrives_as_it_was_published(place, backend):
    p = place()
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    write = p.call("k 1", "key\r\nX-Evil: 1 50% é")
    write.message.attributes["googclient_traceparent"] = trace
    write.message.attributes["X-Evil"] = "a\r\nb"
    outcome = settle(p, write, p.call("raw", "other", body=b"\xff\x00"))
    assert outcome.applied == 2
    first, second = sorted(backend.calls, key=lambda call: call.headers["content-type"])
    assert (first.method, first.path) == ("POST", "/take?token=hush")
    assert orjson.loads(first.body) == {"id": "k 1"}
    wanted = {
        "content-type": "application/json",
        "idempotency-key": write.identity.hex(),
        "x-shardctl-idempotency-key": "key%0D%0AX-Evil:%201%2050%25%20%C3%A9",
        "x-shardctl-type": "call",
        "x-shardctl-operation": "upsert",
        "x-shardctl-key": "k%201",
        "x-shardctl-message-id": write.message_id,
        "traceparent": trace,
        "user-agent": "shardctl",
    }
    assert wanted.items() <= first.headers.items()
    assert not {"authorization", "x-evil"} & first.headers.keys()
    assert (second.body, second.headers["content-type"]) == (b"\xff\x00", "application/octet-stream")


def test_the_example_backend_takes_each_key_once(place, tmp_path):
    taken = tmp_path / "taken.db"
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(Taken(taken)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for number in range(2):  # the second knows nothing of the first
            p = place(f"http://127.0.0.1:{server.server_port}/take", database=f"sqlite:///{tmp_path}/{number}.db")
            assert settle(p, *(p.call(f"k{n}", f"w{n}") for n in range(10))).applied == 10
    finally:
        server.shutdown()
        server.server_close()
    with sqlite3.connect(taken) as database:
        assert database.execute("SELECT count(*), min(kind), min(body) FROM taken").fetchone() == (
            10,
            "call",
            b'{"id":"k0"}',
        )


def test_connections_are_used_again(place, backend):
    p = place(concurrency=2)
    settle(p, *(p.call(f"k{n}") for n in range(20)))
    assert len(backend.calls) == 20
    assert backend.connections <= 2


def test_nothing_of_the_environment_changes_who_gets_a_call(place, backend, monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    p = place()
    settle(p, p.call())
    assert "authorization" not in backend.calls[0].headers


def test_a_body_that_is_too_large_is_never_sent(place, backend):
    p = place(max_body_bytes=1_024)
    write = p.call(body={"id": "k", "text": "x" * 1_024})
    assert write.fault.reason == "too_large"
    settle(p, write)
    assert backend.calls == []


# --- what answers mean ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429, 401])
def test_what_may_pass_is_called_again_with_the_same_key(place, backend, status):
    backend.answer = in_turn(Reply(status), Reply(status, {"Retry-After": "0"}), Reply(201))
    p = place()
    assert settle(p, p.call(ident="a")).applied == 1
    assert backend.asked() == ["a"] * 3
    assert p.database.inbox() == {"a": "applied"}


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
def test_a_refusal_dead_letters_the_write_at_once_and_names_the_status_alone(place, backend, status):
    backend.answer = by_key(bad=[Reply(status, body=b"your password is hush")])
    p = place()
    writes = [p.call(f"k{n}", f"w{n}") for n in range(7)] + [p.call("k", "bad")]
    assert settle(p, *writes).applied == 7
    assert backend.asked().count("bad") == 1
    assert len(backend.calls) == 8, "finding the one at fault must not repeat calls"
    fault = writes[-1].fault
    assert (fault.reason, writes[-1].dead_lettered) == ("backend_refused", True)
    assert str(status) in fault.detail
    assert "hush" not in fault.detail
    assert "secret" not in fault.detail


def test_a_conflict_after_a_call_that_may_have_arrived_is_waited_out(place, backend):
    """The first call is still at work at the backend, which says so of the second."""
    backend.answer = in_turn(Reply(200, hang=5), Reply(409), Reply(200))
    p = place(timeout=timedelta(milliseconds=200))
    assert settle(p, p.call(ident="a")).applied == 1
    assert len(backend.calls) == 3


def test_a_write_that_fails_alone_is_dead_lettered_after_its_attempts(place, backend):
    backend.answer = lambda call: Reply(500 if call.key == "bad" else 200, hang=0.005)
    p = place(attempts=3, breaker={"failures": 3}, concurrency=2)
    writes = [p.call("k", "bad"), *(p.call(f"k{n}", f"w{n}") for n in range(100))]
    assert settle(p, *writes).applied == 100
    assert backend.asked().count("bad") == 3
    assert len(backend.calls) == 103
    assert writes[0].fault.reason == "backend_error"
    assert "500 Internal Server Error" in writes[0].fault.detail


def test_a_backend_that_is_down_has_nothing_dead_lettered_and_is_left_alone(place, backend):
    backend.answer = lambda _: Reply(500)
    p = place(breaker={"open": timedelta(seconds=3)})  # longer than ten refusals take on any machine
    writes = [p.call(f"k{n}", f"w{n}") for n in range(20)]
    with pytest.raises(SlotsWaitError, match=r"500 Internal Server Error \(20 keys wait\)"):
        p.database.settle(*writes)
    opened = len(backend.calls)
    assert opened <= 5 + 8
    for _ in range(10):
        with pytest.raises(SlotsWaitError):
            p.database.settle(*writes)
    assert len(backend.calls) == opened, "an open breaker lets nothing through"
    assert p.metrics.registry.get_sample_value("shardctl_http_breaker_open", {"type": "call"}) == 1
    time.sleep(3)
    with pytest.raises(SlotsWaitError):
        p.database.settle(*writes)
    assert len(backend.calls) == opened + 1, "one call probes"
    backend.answer = lambda _: Reply(200)
    assert settle(p, *writes).applied == 20
    assert len(backend.effects) == 20  # a call that a busy machine answers too late is made again, with its key
    assert p.metrics.registry.get_sample_value("shardctl_http_breaker_open", {"type": "call"}) == 0
    assert not any(write.fault for write in writes)


def test_an_outage_sets_aside_nothing_however_often_the_same_write_probes(place, backend):
    backend.answer = lambda _: Reply(500)
    p = place(attempts=3, breaker={"failures": 3, "open": timedelta(milliseconds=20)})
    write = p.call(ident="a")
    end = time.monotonic() + 5
    while len(backend.calls) < 10:
        with pytest.raises(SlotsWaitError):
            p.database.settle(write)
        assert time.monotonic() < end
    assert write.fault is None
    backend.answer = lambda _: Reply(200)
    assert settle(p, write).applied == 1


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(Reply(200, hang=5), "timeout"), (Reply(200, body=b"x" * 50, drip=0.1), "timeout"), (Reply(None), "unreachable")],
    ids=["hangs", "drips", "hangs up"],
)
def test_without_a_whole_answer_in_time_the_call_is_made_again(place, backend, reply, outcome):
    backend.answer = in_turn(reply, Reply(200))
    p = place(timeout=timedelta(milliseconds=300))
    assert settle(p, p.call(ident="a")).applied == 1
    assert backend.asked() == ["a", "a"]
    assert p.outcomes() == {outcome: 1, "ok": 1}
    assert p.metrics.registry.get_sample_value("shardctl_http_retries_total", {"type": "call"}) == 1


def test_a_large_answer_is_not_read_to_its_end(place, backend):
    backend.answer = lambda _: Reply(200, {"Content-Length": "10000000"}, b"x" * 200_000)  # and the rest never comes
    p = place(timeout=timedelta(seconds=1))
    assert settle(p, p.call()).applied == 1
    assert p.outcomes() == {"ok": 1}


def test_nobody_listens(place):
    p = place("http://127.0.0.1:1/", breaker={"failures": 1})
    with pytest.raises(SlotsWaitError, match="ConnectError: Connect call failed"):
        p.database.settle(p.call())


def test_retry_after_holds_every_write_of_the_backend(place, backend):
    backend.answer = in_turn(Reply(503, {"Retry-After": "1"}), Reply(200))
    p = place(concurrency=1)
    began = time.monotonic()
    settle(p, p.call("a"), p.call("b"))
    assert time.monotonic() - began >= 1
    assert len(backend.calls) == 3
    backend.answer = lambda _: Reply(429, {"Retry-After": "3600"})
    for _ in range(3):
        with pytest.raises(SlotsWaitError, match="429"):
            p.database.settle(p.call("c"))
    assert len(backend.calls) == 4, "what asks for more time than there is gets no second call"


# --- order and the store -------------------------------------------------------------------------------------------------


def test_writes_of_a_key_go_one_after_the_other_and_keys_at_once(place, backend):
    backend.answer = lambda _: Reply(200, hang=0.002)
    p = place(concurrency=4)
    writes = [p.call(f"k{n % 10}", f"k{n % 10}-{n // 10}") for n in range(100)]
    settle(p, *writes)
    assert backend.most_at_once == 4
    for key in range(10):
        mine = [request_key for request_key in backend.asked() if request_key.startswith(f"k{key}-")]
        assert mine == [f"k{key}-{n}" for n in range(10)]


def test_nothing_of_a_key_is_called_behind_a_write_that_failed(place, backend):
    """Also not while the store looks for the one at fault."""
    backend.answer = by_key(bad=[Reply(400)])
    p = place()
    before, bad, after, other = p.call("k", "before"), p.call("k", "bad"), p.call("k", "after"), p.call("o", "other")
    outcome = p.store.apply([before, bad, after, other])
    assert [delivery.idempotency_key for delivery in outcome.poison] == ["bad"]
    assert sorted(backend.asked()) == ["bad", "before", "other"]
    bad.dead_lettered = True
    assert p.store.apply([before, bad, after, other]).applied == 3
    assert sorted(backend.asked()) == ["after", "bad", "before", "other"]


def test_what_is_parked_waits_for_a_person_and_is_called_again_then(place, backend):
    backend.answer = by_key(bad=[Reply(400)])
    p = place(on_poison="park")
    settle(p, p.call("k", "bad"), p.call("k", "after"), p.call("o", "other"))
    assert sorted(backend.effects) == ["other"]
    assert p.database.parked() == {"k": ["bad", "after"]}
    (released,) = p.database.release()
    assert (released.applied, released.fault.reason) == (0, "backend_refused")
    backend.answer = lambda _: Reply(200)
    assert sum(release.applied for release in p.database.release()) == 2
    assert backend.asked()[-2:] == ["bad", "after"]
    assert p.database.parked() == {}


def test_what_the_database_undoes_is_not_called_twice(place, backend):
    """A row of the same batch that breaks a constraint: everything is rolled back, searched and tried again."""
    p = place()
    p.database.run("CREATE UNIQUE INDEX one ON rows (n)")
    rows = [p.call(f"r{n}", f"r{n}", {"id": f"r{n}", "n": n // 2}, "row") for n in range(4)]
    calls = [p.call(f"k{n}", f"w{n}") for n in range(8)]
    outcome = settle(p, *(delivery for pair in zip(calls, rows * 2, strict=True) for delivery in pair))
    assert outcome.applied == 8 + 2
    assert sorted(backend.asked()) == [f"w{n}" for n in range(8)]


def test_a_delivery_that_comes_again_finds_its_write_done(place, backend):
    """The commit failed after the call, and the message's lease ended."""
    p = place()
    first = p.call(ident="a")
    with p.database.engine.connect() as connection:
        p.http.apply(connection, [first])
    assert settle(p, p.call(ident="a")).applied == 1
    assert backend.asked() == ["a"]


def test_one_transaction_waits_for_one_window_however_often_the_sink_is_asked(place, backend):
    backend.answer = lambda _: Reply(500)
    p = place(
        statement_timeout=timedelta(seconds=1),
        timeout=timedelta(milliseconds=400),
        attempts=1_000,
        breaker={"failures": 1_000},
    )
    with p.database.engine.connect() as connection, connection.begin():
        with pytest.raises(SlotsWaitError):
            p.http.apply(connection, [p.call("first", ident="first")])
        assert set(backend.asked()) == {"first"}
        time.sleep(1)  # no window is longer than the statement's time-out
        for n in range(8):  # the window is over: nothing more is called, and nothing waited for
            with pytest.raises(SlotsWaitError):
                p.http.apply(connection, [p.call(f"k{n}", ident=f"k{n}")])
        assert set(backend.asked()) == {"first"}


def test_two_threads_share_the_limit_of_calls(place, backend):
    backend.answer = lambda _: Reply(200, hang=0.01)
    p = place(concurrency=3)
    batches = [[p.call(f"k{n}") for n in range(part, 40, 2)] for part in range(2)]
    with p.database.engine.connect() as connection:
        threads = [threading.Thread(target=p.http.apply, args=(connection, batch)) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(backend.calls), backend.most_at_once) == (40, 3)


def test_two_replicas_with_the_same_messages_make_each_call_once(place, backend, database_url):
    """The second waits for the first's transaction, and finds the writes recorded."""
    backend.answer = lambda _: Reply(200, hang=0.1)
    places = [place(database=database_url) for _ in range(2)]
    arrived = [p.call(f"k{n}", f"w{n}") for p in places[:1] for n in range(8)]
    again = [places[1].call(f"k{n}", f"w{n}") for n in range(8)]
    outcomes = []
    threads = [
        threading.Thread(target=lambda p=p, writes=writes: outcomes.append(settle(p, *writes)))
        for p, writes in zip(places, (arrived, again), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(backend.asked()) == [f"w{n}" for n in range(8)]
    assert sum(outcome.applied for outcome in outcomes) == 8
    assert sum(outcome.duplicates for outcome in outcomes) == 8


def test_when_the_commit_fails_after_the_call_another_replica_calls_again_with_the_same_key(
    place, backend, database_url
):
    first, second = place(database=database_url), place(database=database_url)
    write = first.call("k", "a")
    with first.database.engine.connect() as connection:  # and the pod dies
        first.http.apply(connection, [write])
    assert settle(second, second.call("k", "a")).applied == 1
    assert backend.asked() == ["a", "a"]


def test_nothing_is_waited_for_once_the_process_must_stop(place, backend, monkeypatch):
    monkeypatch.setattr(sink, "PATIENCE_SECONDS", 0.3)
    backend.answer = lambda _: Reply(200, hang=0.1)
    p = place(concurrency=1, statement_timeout=timedelta(minutes=10))
    p.stopping = True
    with pytest.raises(SlotsWaitError):
        p.database.settle(*(p.call(f"k{n}") for n in range(50)))
    assert len(backend.calls) <= 5
    backend.answer = lambda _: Reply(503, {"Retry-After": "3600"})
    with pytest.raises(SlotsWaitError):  # at once: it would wait for longer than any test may last
        p.database.settle(p.call("other"))


def test_closing_gives_up_what_is_on_its_way(place, backend):
    backend.answer = lambda _: Reply(200, hang=30)
    p = place(timeout=timedelta(seconds=5))
    raised = []

    def work():
        try:
            p.database.settle(p.call(ident="a"))
        except SlotsWaitError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: backend.calls)
    p.http.close()
    thread.join(5)
    assert raised
    assert p.database.inbox() == {}


# --- whom it talks to ----------------------------------------------------------------------------------------------------


def test_a_redirect_on_the_same_host_keeps_method_and_body(place, backend):
    backend.answer = lambda call: Reply(200) if call.path == "/b" else Reply(307, {"Location": "/b"})
    p = place(f"{backend.url}/a")
    settle(p, p.call())
    assert [(call.method, call.path, call.body) for call in backend.calls] == [
        ("POST", "/a", b'{"id":"k"}'),
        ("POST", "/b", b'{"id":"k"}'),
    ]


def test_redirects_do_not_go_on_for_ever(place, backend):
    backend.answer = lambda _: Reply(308, {"Location": "/again"})
    p = place(breaker={"failures": 1})
    with pytest.raises(SlotsWaitError, match="more than 3 redirects"):
        p.database.settle(p.call())
    assert len(backend.calls) == 4


def secret(folder, name, **keys):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        (folder / name / key.replace("_", ".")).write_bytes(value if isinstance(value, bytes) else value.encode())


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def secure(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Backend(context=context) as backend:
        yield backend


@pytest.fixture
def secrets(tmp_path, authority):
    secret(tmp_path / "secrets", "ca", ca_crt=authority.cert_pem.bytes())
    secret(tmp_path / "secrets", "login", username="me\n", password="hush:hush\n", token="t0ken\n")
    return tmp_path / "secrets"


AUTH = ", ca_secret: ca, auth: {kind: %s, secret: login}"


@pytest.mark.parametrize(
    ("kind", "header"), [("basic", "Basic bWU6aHVzaDpodXNo"), ("bearer", "Bearer t0ken")], ids=["basic", "bearer"]
)
def test_credentials_come_from_the_secret_and_its_new_version_is_used(place, secure, secrets, kind, header):
    p = place(secure.url, AUTH % kind, secrets=secrets)
    settle(p, p.call("a"))
    assert secure.calls[0].headers["authorization"] == header
    secret(secrets, "login", username="you", password="x", token="n3w")
    settle(p, p.call("b"))
    assert secure.calls[1].headers["authorization"] in ("Basic eW91Ong=", "Bearer n3w")
    assert (secrets / "login" / "token").unlink() is None
    (secrets / "login" / "password").unlink()
    with pytest.raises(SlotsWaitError, match=r"login/.* can't be read"):
        p.database.settle(p.call("c"))


def test_a_certificate_of_another_authority_is_refused_until_its_own_is_mounted(place, secure, secrets, authority):
    secret(secrets, "ca", ca_crt=trustme.CA().cert_pem.bytes())
    p = place(
        secure.url, ", ca_secret: ca", secrets=secrets, breaker={"failures": 1, "open": timedelta(milliseconds=100)}
    )
    with pytest.raises(SlotsWaitError, match="the certificate is refused: unable to get local issuer"):
        p.database.settle(p.call())
    secret(secrets, "ca", ca_crt=authority.cert_pem.bytes())
    assert settle(p, p.call()).applied == 1


def test_a_certificate_for_another_name_is_refused(place, secure, secrets):
    p = place(secure.url.replace("127.0.0.1", "localhost"), ", ca_secret: ca", secrets=secrets, breaker={"failures": 1})
    with pytest.raises(SlotsWaitError, match="Hostname mismatch"):
        p.database.settle(p.call())
    assert secure.calls == []


def test_without_a_private_authority_its_certificate_is_refused(place, secure):
    p = place(secure.url, breaker={"failures": 1})
    with pytest.raises(SlotsWaitError, match="the certificate is refused"):
        p.database.settle(p.call())


@pytest.mark.parametrize("elsewhere", ["host", "port", "scheme"])
def test_a_redirect_elsewhere_gets_neither_the_write_nor_the_credentials(place, secure, secrets, backend, elsewhere):
    port = secure.url.rpartition(":")[2]
    location = {
        "host": f"https://localhost:{port}/stolen",
        "port": f"{backend.url}/stolen".replace("http", "https", 1),
        "scheme": f"{backend.url}/stolen",
    }[elsewhere]
    secure.answer = in_turn(Reply(307, {"Location": location}), Reply(200))
    p = place(secure.url, AUTH % "bearer", secrets=secrets)
    settle(p, p.call(ident="a"))
    assert [call.path for call in secure.calls] == ["/", "/"]
    assert backend.calls == []
    assert backend.connections == 0
    assert p.outcomes() == {"redirected": 1, "ok": 1}


def test_no_log_holds_a_credential(place, secure, secrets, caplog):
    for name in logs.NOISY:
        caplog.set_level(logging.WARNING, name)  # as `logs.configure` does in a process
    caplog.set_level(logging.DEBUG)
    secure.answer = lambda _: Reply(500, body=b"t0ken")
    p = place(f"{secure.url}/take?key=hush", AUTH % "bearer", secrets=secrets, breaker={"failures": 2})
    with pytest.raises(SlotsWaitError) as raised:
        p.database.settle(p.call())
    assert "isn't called for" in caplog.text
    log = caplog.text + str(raised.value)
    shown = repr(vars(p.http)) + repr(vars(p.http._backends["call"])) + repr(vars(p.http._backends["call"]._caller))
    assert "t0ken" not in log + shown
    assert "hush" not in log, "a URL may hold a secret too"


def test_a_secret_that_is_not_there_ends_the_start(tmp_path, place, secrets):
    config = place("https://127.0.0.1:1/", AUTH % "basic", secrets=secrets).database.config
    from consumer.observability.metrics import Metrics

    with pytest.raises(CredentialsError, match=r"/nowhere/ca/ca.crt: can't be read.*SHARDCTL_SECRETS_DIR") as raised:
        sink_for(config, Metrics(), lambda: False, {"SHARDCTL_SECRETS_DIR": str(tmp_path / "nowhere")})
    assert raised.value.exit_code == 2
    assert not isinstance(raised.value, SpecError)

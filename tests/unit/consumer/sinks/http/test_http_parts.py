"""The HTTP sink's pure parts: what answers mean, what is sent, what is remembered, and where credentials come from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import unquote

import pytest
from consumer_kit import raw
from hypothesis import given
from hypothesis import strategies as st

from consumer.sinks.http.answers import LONGEST_RETRY_AFTER_SECONDS, Meaning, meaning, phrase, retry_after
from consumer.sinks.http.credentials import Authorization, CredentialsError, SecretFiles, Trust
from consumer.sinks.http.progress import Memory
from consumer.sinks.http.request import content_type, encoded, headers
from shardctl.fleet.settings.httpauth import HttpAuth
from shardctl.wire import identity

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "means"),
    [
        ((200, 201, 202, 204), Meaning.OK),
        ((400, 402, 403, 404, 405, 409, 410, 415, 422, 451, 499), Meaning.REFUSED),
        ((401, 408, 425, 500, 501, 502, 503, 504, 599, 300, 304, 103), Meaning.FAILED),
        ((429,), Meaning.THROTTLED),
    ],
)
def test_what_a_status_means(statuses, means):
    assert {meaning(status) for status in statuses} == {means}


def test_a_conflict_may_be_with_our_own_earlier_call():
    assert meaning(409, unsure=True) == Meaning.FAILED
    assert meaning(422, unsure=True) == Meaning.REFUSED


def test_403_may_mean_that_an_identity_lacks_a_role():
    assert meaning(403, grants_may_lack=True) == Meaning.FAILED
    assert meaning(403) == meaning(404, grants_may_lack=True) == Meaning.REFUSED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7), (" 7 ", 7), ("0", 0), ("999999999999999", LONGEST_RETRY_AFTER_SECONDS), (None, 0), ("", 0),
        ("soon", 0), ("-5", 0), ("1.5", 0), ("\uff17", 0), ("Mon, 99 Foo", 0),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0),
        ("Fri, 01 May 2099 12:00:00 GMT", LONGEST_RETRY_AFTER_SECONDS),
        ("Fri, 01 May 2026 12:00:10 -0000", 10),
    ],
)  # fmt: skip
def test_retry_after(text, seconds):
    assert retry_after(text, NOW) == seconds


@given(st.text(max_size=40))
def test_whatever_a_retry_after_holds_the_wait_is_bounded(text):
    assert 0 <= retry_after(text, NOW) <= LONGEST_RETRY_AFTER_SECONDS


def test_a_phrase_is_the_standards_own():
    assert (phrase(503), phrase(799)) == ("503 Service Unavailable", "799")


@given(st.text(max_size=60))
def test_a_header_holds_any_text_without_loss(text):
    value = encoded(text)
    assert all(0x21 <= ord(character) <= 0x7E for character in value)
    assert unquote(value, errors="surrogatepass") == text


def test_headers_hold_what_a_message_holds_and_nothing_breaks_out():
    delivery = raw("call", b"{}", "k\r\nX-Evil: 1", ident="50%")
    delivery.message.attributes["traceparent"] = f"00-{'a' * 32}-{'b' * 16}-01\r\nX: 1"
    delivery.message.attributes["googclient_traceparent"] = f"00-{'c' * 32}-{'d' * 16}-00"
    delivery.message.attributes["googclient_tracestate"] = "a=b,c=d"
    sent = headers(delivery)
    assert sent["X-Shardctl-Key"] == "k%0D%0AX-Evil:%201"
    assert sent["Idempotency-Key"] == identity.in_slot(identity.of_key("", "call", "50%"), delivery.slot).hex()
    assert sent["X-Shardctl-Idempotency-Key"] == "50%25"
    assert sent["traceparent"] == f"00-{'c' * 32}-{'d' * 16}-00"
    assert sent["tracestate"] == "a=b,c=d"
    delivery.message.attributes["googclient_traceparent"] = "no trace"
    delivery.message.attributes["googclient_tracestate"] = "a\nb"
    assert not {"traceparent", "tracestate"} & headers(delivery).keys()


@pytest.mark.parametrize("state", [" a=b ", "\ta=b", "a=b\r\n", "\x0ba=b", "a=b\x85", "a=b\N{EM SPACE}"])
def test_blanks_around_a_trace_state_make_no_header_that_cannot_be_sent(state):
    delivery = raw("call", b"{}", "k")
    delivery.message.attributes["traceparent"] = f"00-{'c' * 32}-{'d' * 16}-00"
    delivery.message.attributes["tracestate"] = state
    assert headers(delivery)["tracestate"] == "a=b"


def test_a_backend_is_given_one_key_for_each_write():
    """The same key of another type, or of another caller, is another write to the backend too."""
    sent = [raw("call", b"{}", "k", ident="i"), raw("raw", b"{}", "k", ident="i"), raw("call", b"{}", "k", ident="i")]
    sent[2].identity = identity.of_key("somebody", "call", "i")
    assert len({headers(delivery)["Idempotency-Key"] for delivery in sent}) == 3


def test_a_body_is_json_where_it_is():
    assert content_type(b'{"a": 1}') == content_type(b"[]") == "application/json"
    assert content_type(b"") == content_type(b"{") == content_type(b"\xff") == "application/octet-stream"


def test_what_is_remembered_is_bounded_and_a_write_in_flight_keeps_its_own():
    memory = Memory(most=100, longest_seconds=60)
    first = raw("call", b"{}", "k", ident="first")
    memory.of(first, 0.0).done = True
    assert memory.of(raw("call", b"{}", "k", ident="first"), 1.0).done
    assert not memory.of(raw("call", b"{}", "k", ident="first", slot=(first.slot + 1) % 64), 1.0).done
    for number in range(1_000):
        memory.of(raw("call", b"{}", "k", ident=str(number)), 2.0)
    assert len(memory) == 100
    assert memory.of(first, 3.0).done
    assert not memory.of(raw("call", b"{}", "k", ident="first"), 3.0).done


def test_a_key_that_is_used_again_much_later_is_not_taken_for_done():
    memory = Memory(longest_seconds=60)
    memory.of(raw("call", b"{}", "k", ident="a"), 0.0).done = True
    assert memory.of(raw("call", b"{}", "k", ident="a"), 60.0).done
    assert not memory.of(raw("call", b"{}", "k", ident="a"), 60.1).done


def test_what_is_dead_lettered_is_forgotten():
    memory, write = Memory(), raw("call", b"{}", "k", ident="a")
    memory.of(write, 0.0).failures = 5
    memory.forget(write)
    assert memory.of(raw("call", b"{}", "k", ident="a"), 0.0).failures == 0


def mounted(folder: Path, version: str, **files: str) -> None:
    """As the kubelet does it: a new folder, and a link that is moved over in one step."""
    (folder / version).mkdir(parents=True)
    for name, text in files.items():
        (folder / version / name).write_text(text)
    (folder / "new").symlink_to(version)
    (folder / "new").replace(folder / "..data")
    for name in files:
        if not (folder / name).exists():
            (folder / name).symlink_to(f"..data/{name}")


def test_a_mounted_secret_is_read_again_when_it_changes(tmp_path):
    mounted(tmp_path / "login", "..1", username="me", password="old\n")
    authorization = Authorization(HttpAuth(kind="basic", secret="login"), tmp_path)
    assert authorization.header() == "Basic bWU6b2xk"
    mounted(tmp_path / "login", "..2", username="me", password="new")
    assert authorization.header() == "Basic bWU6bmV3"
    mounted(tmp_path / "login", "..3", username="m:e", password="new")
    for _ in range(2):
        with pytest.raises(CredentialsError, match="can't hold a colon"):
            authorization.header()


def test_the_keys_of_one_version_belong_together(tmp_path):
    mounted(tmp_path, "..1", username="old", password="old")
    files = SecretFiles(tmp_path, ("username", "password"))
    assert files.read() == (True, (b"old", b"old"))
    assert files.read() == (False, (b"old", b"old"))
    mounted(tmp_path, "..2", username="new", password="new")
    assert files.read() == (True, (b"new", b"new"))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "can't be read: No such file"), ("", "is empty"), ("\n", "is empty"), ("hu sh", "visible"), ("hüsh", "visible")],
)  # fmt: skip
def test_a_token_that_cant_be_used(tmp_path, content, says):
    (tmp_path / "s").mkdir()
    if content is not None:
        (tmp_path / "s" / "token").write_text(content)
    with pytest.raises(CredentialsError, match=says) as raised:
        Authorization(HttpAuth(kind="bearer", secret="s"), tmp_path).header()
    assert content is None or content.strip() == "" or content not in str(raised.value)


def test_an_authority_that_is_none(tmp_path):
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "ca.crt").write_text("-----BEGIN NOTHING-----")
    with pytest.raises(CredentialsError, match="holds no certificates as PEM text"):
        Trust("ca", tmp_path).context()


def test_credentials_show_themselves_to_nobody(tmp_path):
    mounted(tmp_path / "login", "..1", token="hush")
    authorization = Authorization(HttpAuth(kind="bearer", secret="login"), tmp_path)
    authorization.header()
    assert "hush" not in f"{authorization!r}{authorization._files!r}"

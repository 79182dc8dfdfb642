"""A desk whose Pub/Sub can't be asked is an error: silence is no proof that nothing is left."""

import socket
from contextlib import closing

import pytest
from deadletter_kit import BrokerThread, Town
from google.pubsub_v1 import SubscriberClient

from shardctl.cli import main
from shardctl.deadletter import leasedreader as desks
from shardctl.deadletter import pubsub
from shardctl.deadletter.leasedreader import GoneError, LeasedReader
from shardctl.deadletter.pubsub import PubsubError
from shardctl.fleet import scaffold
from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(params=["nobody listens", "nobody answers"])
def nobody(request, monkeypatch):
    """A Pub/Sub that can't be reached: its port refuses connections, or takes them and stays silent."""
    for name in ("TROUBLE_SECONDS", "_TIMEOUT_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(desks, name, 0.3)
    if request.param == "nobody listens":
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
        yield
        return
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        yield


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards.yaml").write_text(scaffold.text(1))


COMMANDS = [
    "list",
    "list --json",
    "show 1",
    "replay --all",
    "replay --all --yes --json",
    "drop --all",
    "drop --all --yes --json",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_who_cannot_be_asked_has_no_zero_letters(nobody, file, capsys, command):
    assert main(["deadletter", *command.split(), "--wait", "0.2"]) == 1
    out, err = capsys.readouterr()
    assert "error: the subscription orders-dead can't be read: " in err
    assert out == ""
    assert "0 dead letters" not in err
    assert "Nothing matches" not in err


def test_a_broker_that_goes_away_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(desks, "TROUBLE_SECONDS", 0.1)
    broker = BrokerThread()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    town = Town(broker, tmp_path, "desk-gone")
    lines = []
    with pubsub.clients() as (_, subscriber):
        desk = LeasedReader(subscriber, town.fleet.project, ["shop-dead"], silence_seconds=60, tell=lines.append)
        with desk:
            reading = desk.read()
            town.close()
            broker.stop()
            with pytest.raises(PubsubError, match="shop-dead can't be read"):
                next(reading)
    assert "Trying again" in lines[0]


def test_a_subscription_that_is_not_there_is_an_error_where_the_stream_stays_silent(tmp_path, monkeypatch):
    """The round trip finds it, whatever the stream says."""
    broker = BrokerThread()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    monkeypatch.setattr(LeasedReader, "_read", lambda *_: None)  # a stream that neither gives nor fails
    try:
        with (
            pubsub.clients() as (_, subscriber),
            LeasedReader(subscriber, "p", ["missing"], silence_seconds=0.1) as desk,
            pytest.raises(GoneError, match="missing isn't there"),
        ):
            list(desk.read())
    finally:
        broker.stop()


def test_an_empty_subscription_answers_and_is_empty(tmp_path, monkeypatch):
    broker = BrokerThread()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    town = Town(broker, tmp_path, "desk-empty")
    asked = []
    ask = SubscriberClient.modify_ack_deadline
    monkeypatch.setattr(SubscriberClient, "modify_ack_deadline", lambda *a, **k: asked.append(k) or ask(*a, **k))
    try:
        with (
            pubsub.clients() as (_, subscriber),
            LeasedReader(subscriber, town.fleet.project, ["shop-dead"], silence_seconds=0.1) as desk,
        ):
            assert list(desk.read()) == []
    finally:
        town.close()
        broker.stop()
    assert [call["ack_ids"] for call in asked] == [[desks.PROBE_ID]]

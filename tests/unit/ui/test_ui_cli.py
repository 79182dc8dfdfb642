"""`shardctl ui` as it is called; in a browser it is tried in tests/e2e."""

import socket
from inspect import signature

import pytest
from fleets import text

from shardctl.cli import main
from shardctl.cli.ui import ui
from shardctl.serving.sockets import is_loopback
from shardctl.ui import server


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "shards.yaml").write_text(text(("0-7", "8-15"), slot_bits=4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_port_that_is_taken_is_reported(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"can't listen on 127.0.0.1:{port}" in err
    assert "0 takes a free one" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no such host"], "can't listen on no such host:8642"),
        (["--host", "203.0.113.1"], "can't listen on 203.0.113.1:8642"),
        (["--port", "70000"], "65535"),
        (["--database", "s9=sqlite:///x"], "no shard 's9'"),
        (["--prometheus", "nowhere"], "--prometheus wants the URL"),
        (["-f", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_reported_as_such(folder, capsys, arguments, message):
    assert main(["ui", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")],
)
def test_the_address_is_one_that_a_browser_here_opens(host, shown):
    with server.listen(host, 0) as listening:
        assert server.address(listening, host) == f"http://{shown}:{listening.getsockname()[1]}/"


def test_it_listens_on_this_machine_alone_by_default():
    assert signature(ui).parameters["host"].default == "127.0.0.1"
    assert is_loopback("127.0.0.1")
    assert not is_loopback("0.0.0.0")

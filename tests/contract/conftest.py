"""The same tests on the embedded broker and, where one is installed, on the official emulator."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pubsub_harness import OFFICIAL, PROBES, PubSub, Server, find_official, free_port


@pytest.fixture(scope="session")
def embedded() -> Iterator[Server]:
    port, rest_port = free_port(), free_port()
    ports = ["--port", str(port), "--rest-port", str(rest_port)]
    server = Server([sys.executable, "-m", "shardctl.broker", *ports], port, rest_port)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def official() -> Iterator[Server]:
    command = find_official()
    if command is None or shutil.which("java") is None:
        pytest.skip(f"no {OFFICIAL} here (gcloud components install pubsub-emulator, and Java)")
    port = free_port()
    server = Server([command, "--host=127.0.0.1", f"--port={port}"], port, port)
    yield server
    server.stop()


@pytest.fixture(params=["embedded", "official"])
def server(request: pytest.FixtureRequest) -> Server:
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def pubsub(request: pytest.FixtureRequest, server: Server) -> Iterator[PubSub]:
    clients = PubSub(request.node.callspec.params["server"], server.host)
    yield clients
    clients.close()


_ABLE: dict[tuple[str, str], bool] = {}


@pytest.fixture
def needs(pubsub: PubSub) -> Any:
    """`needs("filters")` skips the test on an official emulator that is found to lack the feature."""

    def check(feature: str) -> None:
        if pubsub.kind == "embedded":
            return  # what it promises it must do
        known = (pubsub.kind, feature)
        if known not in _ABLE:
            _ABLE[known] = PROBES[feature](PubSub(pubsub.kind, pubsub.host))
        if not _ABLE[known]:
            pytest.skip(f"the official emulator here lacks: {feature}")

    return check

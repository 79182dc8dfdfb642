"""Each HTTP server of ours under each attack: it stays small, and answers others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import attack_kit
import httpx
import pytest
from attack_kit import MIB, Target
from consumer_kit import Shard, config
from gateway_kit import FLEET, fleet
from gateway_process import running, until

from shardctl.fleet.settings.delivery import Delivery
from shardctl.local.servers.process import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MOST_BYTES = 64 * MIB


@contextmanager
def gateway(folder):
    with running(folder, fleet()) as (_, process):
        yield Target(process.process.pid, process.address[1], "/health", "/v1/writes/order")


@contextmanager
def consumer(folder):
    """A consumer that takes pushes: the process, its health port and its push port."""
    shard, ports = Shard(f"sqlite:///{folder}/shard.db"), (free_port(), free_port())
    push = Delivery(
        kind="push", url="https://push.example.com/shop", service_account="p@my-project.iam.gserviceaccount.com"
    )
    file = folder / "shard.json"
    file.write_text(config().model_copy(update={"delivery": push}).model_dump_json())
    environment = {
        "DATABASE_URL": shard.url.render_as_string(hide_password=False),
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:1",
        "HOST": "127.0.0.1",
        "PORT": str(ports[0]),
        "PUSH_PORT": str(ports[1]),
    }
    with (folder / "consumer.log").open("wb") as log:
        command = [sys.executable, "-m", "consumer", "--config", str(file)]
        process = subprocess.Popen(command, stderr=log, env=os.environ | environment)

    def ready():
        assert process.poll() is None, (folder / "consumer.log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{ports[0]}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, 60, "a consumer that is ready")
        yield process.pid, *ports
    finally:
        process.kill()
        process.wait()
        shard.close()


@contextmanager
def push_endpoint(folder):
    with consumer(folder) as (pid, _, port):
        yield Target(pid, port, "/", "/shop/s0/shop-s0-g1")


@contextmanager
def health_port(folder):
    with consumer(folder) as (pid, port, _):
        yield Target(pid, port, "/health", "/health")


@contextmanager
def page(folder):
    (folder / "shards.yaml").write_text(FLEET.replace("gateway:", ""))
    with (folder / "ui.log").open("wb") as log:
        command = [sys.executable, "-m", "shardctl", "ui", "-f", str(folder / "shards.yaml"), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ)
    try:
        match = re.match(rb"http://127.0.0.1:(\d+)/", process.stdout.readline())
        assert match, (folder / "ui.log").read_text()
        yield Target(process.pid, int(match[1]), "/", "/api/parked/replay")
    finally:
        process.kill()
        process.wait()


# Each takes its server's time limits. One of them shows in `make test` that there are bounds at all.
ATTACKS = [
    pytest.param(
        server, attack, id=f"{server.__name__}-{attack.__name__}",
        marks=[] if (server, attack) == (gateway, attack_kit.ATTACKS[0]) else [pytest.mark.proof],
    )
    for server in (gateway, push_endpoint, health_port, page)
    for attack in attack_kit.ATTACKS
]  # fmt: skip


@pytest.mark.parametrize(("server", "attack"), ATTACKS)
def test_an_attack_neither_fills_the_memory_nor_keeps_others_from_their_answers(server, attack, tmp_path):
    with server(tmp_path) as target:
        cost = attack_kit.cost_of(target, attack)
        print(f"{server.__name__}, {attack.__name__}: {cost}")
        assert cost.grown_bytes < MOST_BYTES, cost
        assert cost.answers_seconds, cost
        assert not cost.failures, cost

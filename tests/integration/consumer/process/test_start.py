"""What a consumer loads when it starts: counted, since how long that takes depends on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from consumer_kit import CONFIG, Shard
from patience import PATIENCE_SECONDS

from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow

# What this consumer's configuration doesn't use: it pulls from an emulator, and writes to tables without a leader or tracing.
UNUSED = {
    "consumer.leader.kubernetes": "a lease in Kubernetes",
    "consumer.intake.push": "pushes",
    "consumer.sinks.http.sink": "HTTP backends",
    "cryptography.hazmat": "TLS of others, signatures",
    "google.api_core.retry": "the generated clients",
    "google.auth.transport": "the service's credentials",
    "google.cloud": "the callback client",
    "google.iam": "the generated clients",
    "google.pubsub_v1.services": "the generated clients",
    "httpx": "HTTP backends",
    "jinja2": "rendering",
    "jwt": "pushes",
    "opentelemetry.context": "tracing",  # its own name alone is listed, as one that was asked for and is absent
    "psycopg": "another database's driver",
    "pymysql": "another database's driver",
    "requests": "the service's credentials",
    "rich": "the command line",
    "shardctl.fleet.spec": "the whole fleet",
    "shardctl.oidc": "pushes",
    "starlette.applications": "pushes",
    "typer": "the command line",
    "yaml": "shards.yaml",
}
MOST_MODULES = 830  # 1,163 before any was left out


@pytest.fixture
def imported(tmp_path):
    """The modules that a process imports from its start to its end, its Redis and its Pub/Sub being away."""
    shard = Shard(f"sqlite:///{tmp_path}/shard.db")
    shard.close()
    file = tmp_path / "config.json"
    file.write_text(CONFIG.model_dump_json())
    environment = os.environ | {
        "DATABASE_URL": shard.url.render_as_string(hide_password=False),
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
        "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{free_port()}",
        "PORT": "0",
        "HOST": "127.0.0.1",
    }
    command = [sys.executable, "-X", "importtime", "-m", "consumer", "--config", str(file)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if '"stream_ended"' in line:  # it has asked its database, and come to read
                break
        process.send_signal(signal.SIGTERM)
        lines.append(process.communicate(timeout=PATIENCE_SECONDS)[1])
    finally:
        process.kill()
    text = "".join(lines)
    assert process.returncode == 0, text[-2_000:]
    return {line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:")} - {
        "imported package"
    }


def test_a_consumer_loads_only_what_its_configuration_uses(imported):
    loaded = {
        package: why
        for package, why in UNUSED.items()
        if any(name == package or name.startswith(f"{package}.") for name in imported)
    }
    assert not loaded
    assert len(imported) < MOST_MODULES, len(imported)

"""gcloud on the embedded broker: the commands of its page, the rendered script, and the seek of the how-to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pubsub_harness import PubSub

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.render import gcloud

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud here: install the Google Cloud CLI"),
]


@pytest.fixture
def environment(embedded, tmp_path):
    """Of a shell whose gcloud talks to the broker alone, and asks no other host."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{embedded.rest_host}/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_PROJECT": "my-project",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
    }


def run(script, environment):
    """What it prints; it must succeed."""
    done = subprocess.run(["/bin/sh", "-e"], input=script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_commands_work(embedded, environment):
    page = (ROOT / "docs/broker.md").read_text()
    script = "".join(block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "shardctl" not in block)
    shown = run(script.replace("127.0.0.1:8086", embedded.rest_host), environment)
    assert "hello" in shown.splitlines()
    assert '"data":"aGVsbG8="' in shown


FLEET = """
fleet: orders
project: my-project
namespace: writers
image: example.com/consumer:1.0.0
provisioner: gcloud
message_types: {order: {table: orders, key: order_id, columns: {order_id: text}}}
subscription: {retain_acked: true}
shards: [{name: s1, slots: 0-1023}]
"""


def test_the_rendered_script_makes_the_fleet_and_the_how_to_seeks(embedded, environment, tmp_path):
    """What isn't Pub/Sub's, and IAM, which the broker refuses, is left out: the script's other tests have it."""
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}"}
    (tmp_path / "gcloud").write_text(
        f"""#!/bin/sh
case "$1 $3" in
  *iam-policy*) ;;
  pubsub*) exec '{shutil.which("gcloud")}' "$@" ;;
esac
"""
    )
    (tmp_path / "gcloud").chmod(0o755)
    script = gcloud.text(fleet_from(parse(FLEET)))
    made, repeated = (
        {
            tuple(line.split())
            for line in run(script, environment).splitlines()
            if "account" not in line and "grant" not in line
        }
        for _ in range(2)
    )
    assert ("create", "subscription", "orders-s1-g1") in made
    assert repeated == {("identical", *rest) for _, *rest in made}

    pubsub = PubSub("embedded", embedded.host, "my-project")
    name = pubsub.subscription_name("orders-s1-g1")
    pubsub.publish(pubsub.topic_name("data-writes"), "x", slot="0000000000")
    pubsub.ack(name, pubsub.pull(name, 1))
    (command,) = re.findall(r"gcloud pubsub subscriptions seek orders-s1-g1 .*", (ROOT / "docs/howto.md").read_text())
    before = f"{datetime.now(UTC) - timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
    run(re.sub(r"--time=\S+", f"--time={before}", command), environment)
    assert [received.message.data for received in pubsub.pull(name, 1)] == [b"x"]
    pubsub.close()

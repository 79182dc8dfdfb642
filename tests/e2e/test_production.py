"""docs/production.md and docs/troubleshooting.md: the blocks marked `sh`, one after the other, as a newcomer runs them.

kubectl is the real one, and leads to an API server of the tests' own; gcloud is one that keeps what it makes in a file. The
databases, Pub/Sub and the consumers, which no pod runs here, are those of `shardctl up` on the page's own file.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cluster_kit import Cluster, serve
from patience import PATIENCE_SECONDS

from shardctl.local.servers.family import alive, children
from shardctl.local.servers.process import wait_until

ROOT = Path(__file__).parents[2]
KUBECTL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.skipif(KUBECTL is None or shutil.which("psql") is None, reason="kubectl or psql isn't on the PATH"),
]
CONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: here, context: {{cluster: test}}}}]
current-context: here
"""
# The API server of the tests has no OpenAPI documents to validate by.
KUBECTL_HERE = """#!/bin/sh
for argument; do [ "$argument" != apply ] || exec {kubectl} "$@" --validate=false; done
exec {kubectl} "$@"
"""
FAKE_GCLOUD = ROOT / "tests/unit/render/fake_gcloud.py"


def blocks(page):
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


class Shell:
    """One shell: what a block exports, the next one has. `replaced` holds what a page's placeholders are here."""

    def __init__(self, folder, port):
        self.folder, self.replaced, self.up, self.family = folder, {}, None, []
        tools = folder / "bin"
        tools.mkdir()
        self._tool(tools / "kubectl", KUBECTL_HERE.format(kubectl=KUBECTL))
        self._tool(tools / "gcloud", f"#!/bin/sh\nexec '{sys.executable}' -SE '{FAKE_GCLOUD}' \"$@\"\n")
        (folder / "kubeconfig").write_text(CONFIG.format(port=port))
        names = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDCTL_", "PUBSUB_"))}
        self.environment = names | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(folder / "kubeconfig"),
            "KUBECACHEDIR": str(folder / "cache"),
            "FAKE_GCLOUD": str(folder),
        }
        (folder / "exported").touch()

    def _tool(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def run(self, block, *, replaced=True):
        for placeholder, value in self.replaced.items() if replaced else ():
            block = block.replace(placeholder, value)
        script = f". ./exported\nset -euo pipefail\n{block}\nset +euo pipefail\nexport -p > exported\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=10 * PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start_fleet(self):
        """Databases, Pub/Sub and consumers of the file that the page has written."""
        log = self.folder / "up.log"
        with log.open("w") as out:
            self.up = subprocess.Popen(
                ["shardctl", "up"],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        assert wait_until(lambda: "Ctrl-C stops it" in log.read_text(), PATIENCE_SECONDS), log.read_text()
        made = self.run(
            '. build/env; printf "%s\\n" "$PUBSUB_EMULATOR_HOST" "$SHARDCTL_DATABASE_URL_S0" "$SHARDCTL_DATABASE_URL_S1"'
        )
        host, *urls = made.splitlines()
        self.environment["PUBSUB_EMULATOR_HOST"] = host
        for number, url in enumerate(urls):
            address = f"10.30.0.{number + 3}"
            self.replaced[f"postgresql://consumer:PASSWORD_S{number}@{address}:5432/orders?sslmode=require"] = (
                url.replace("+psycopg", "")
            )

    def close(self):
        if self.up is not None:
            descendants = list(children(self.up.pid))
            self.up.send_signal(signal.SIGINT)
            self.up.wait(PATIENCE_SECONDS)
            assert wait_until(lambda: not any(map(alive, descendants)), PATIENCE_SECONDS)


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def shell(cluster, tmp_path):
    with serve(cluster) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        made = Shell(tmp_path, server.server_port)
        try:
            yield made
        finally:
            made.close()
            server.shutdown()
            thread.join()


def test_from_zero_to_a_first_write_and_then_through_the_page_for_trouble(shell, cluster):
    outputs = {}
    for block in blocks("production.md"):
        outputs[block] = shell.run(block)
        if "shardctl init" in block:
            shell.start_fleet()
    text = "\n".join(outputs.values())
    assert "all is as the file says" in text
    assert "create subscription orders-s0-g1" in text
    assert {"Namespace", "Secret"} <= {body["kind"] for body in cluster.objects.values()}
    assert cluster.names("Deployment") == ["Deployment/orders-s0", "Deployment/orders-s1"]
    assert "Ada" in outputs[next(block for block in outputs if "psql" in block)].split()
    assert "\\n" not in outputs[next(block for block in outputs if "od -c" in block)]
    assert re.search(r"^s0 +512 ", text, re.MULTILINE)

    shell.run("unset SHARDCTL_DATABASE_URL_S0 SHARDCTL_DATABASE_URL_S1")
    trouble = "\n".join(shell.run(block) for block in blocks("troubleshooting.md"))
    assert "SHARDCTL_DATABASE_URL_S1=" in (shell.folder / "exported").read_text()
    assert re.search(r"^s1 +512 ", trouble, re.MULTILINE)
    assert "shard         s0" in trouble


def test_a_write_that_cannot_succeed_is_one_dead_letter(shell):
    """What the page's checks promise, but for the pods."""
    for block in blocks("production.md")[:2]:
        shell.run(block)
    shell.start_fleet()
    page = (ROOT / "docs" / "production.md").read_text()
    (write,) = re.findall(r"publish `(\{.*?\})` \| one dead letter, reason `no_row`", page)
    shell.run(f". build/env\necho '{write}' | shardctl publish")
    seen = wait_until(lambda: "no_row" in shell.run(". build/env\nshardctl deadletter list --wait 1"), PATIENCE_SECONDS)
    assert seen
    shell.run(". build/env\nshardctl deadletter drop --all --yes")

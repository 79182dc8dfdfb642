"""A signal ends a command in order: exit code 130, and the audit has how it ended. Real processes, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from shardctl.fleet import scaffold

pytestmark = pytest.mark.slow
PATIENCE_SECONDS = 60.0


@pytest.fixture
def provision(tmp_path):
    """`shardctl provision`, begun, with a Pub/Sub that accepts connections and never answers; killed at the end."""
    (tmp_path / "shards.yaml").write_text(scaffold.text(1))
    environment = os.environ | {
        "SHARDCTL_AUDIT_LOG": str(tmp_path / "audit.jsonl"),
        "SHARDCTL_DATABASE_URL_S0": f"sqlite:///{tmp_path}/0.db",
    }
    started = []
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        environment["PUBSUB_EMULATOR_HOST"] = f"127.0.0.1:{silent.getsockname()[1]}"

        def start(*wrapper):
            process = subprocess.Popen(
                [
                    *wrapper,
                    sys.executable,
                    "-c",
                    "from shardctl.cli import main; raise SystemExit(main())",
                    "provision",
                ],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                # The process that runs the tests may ignore it, and then the command would, too.
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - there are no threads
            )
            started.append(process)
            for line in process.stderr:
                if line.startswith("audit: ") and '"begun"' in line:
                    return process
            raise AssertionError(f"it ended with {process.wait()} and began nothing")

        yield start
        for process in started:
            process.kill()
            process.wait()
            process.stderr.close()


def logged(tmp_path):
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_action_with_a_line(provision, tmp_path, number):
    process = provision()
    process.send_signal(number)
    err = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 130
    assert "interrupted" in err.splitlines()
    begun, ended = logged(tmp_path)
    assert (begun["result"], ended["result"], ended["error"]) == ("begun", "interrupted", number.name)
    assert begun["id"] == ended["id"]


def test_of_a_process_that_is_killed_the_first_line_stays(provision, tmp_path):
    process = provision()
    process.kill()
    process.wait(PATIENCE_SECONDS)
    assert [line["result"] for line in logged(tmp_path)] == ["begun"]


def test_what_is_ignored_from_the_start_stays_so(provision, tmp_path):
    process = provision("nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)  # delivered after it, if at all
    process.communicate(timeout=PATIENCE_SECONDS)
    assert logged(tmp_path)[-1]["error"] == "SIGTERM"

"""Each example of a producer, by the commands of its README: every write takes effect once and in order, while the broker refuses
and loses answers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import IO

import pytest
from patience import PATIENCE_SECONDS

from shardctl.broker import admin
from shardctl.broker.faults import Faults
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Stream
from shardctl.local.oracle import verify
from shardctl.local.servers import BinaryMissingError
from shardctl.local.servers.process import wait_until
from shardctl.wire.message import Write

pytestmark = [pytest.mark.slow, pytest.mark.proof]  # three languages are built from nothing

ROOT = Path(__file__).parents[2]
TOOLS = {"node": ("node", "npm"), "java": ("java", "javac"), "go": ("go",)}
WRITES, ENTITIES = 300, 60
SLOT_BITS = 10
GIVE_UP_SECONDS = 1
FLEET = """
fleet: shop
project: my-project
image: example.com/consumer:1
message_types:
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text, credit: decimal, revision: bigint}}
  order: {table: orders, key: order_id, columns: {order_id: text, lines: json, placed_at: timestamp, revision: bigint}}
subscription: {retry_minimum: 0s, retry_maximum: 0s}
shards:
  - {name: s0, slots: 0-511}
  - {name: s1, slots: 512-1023}
"""


class Scene:
    """A fleet, and a story of writes for a producer to publish."""

    def __init__(self, local: LocalFleet) -> None:
        self.local = local
        stream = Stream(local.spec, WRITES, ENTITIES, seed=5, duplicate_rate=0)
        self.story = [publication.write for publication in stream]
        self.published: list[Write] = []

    @property
    def messages(self) -> int:
        return admin.stats(self.local.broker.host)["messages_published"]

    def verify(self) -> None:
        self.local.wait_drained(PATIENCE_SECONDS)
        verdict = verify(self.local.spec, self.published, self.local.databases)
        assert not verdict.findings, "\n".join(map(str, verdict.findings[:20]))
        assert sum(shard.applied for shard in verdict.shards) == len(self.published)


@pytest.fixture
def scene(tmp_path_factory):
    try:
        with LocalFleet(
            fleet_from(yamlfile.parse(FLEET, "shards.yaml")), tmp_path_factory.mktemp("fleet"), replicas=1
        ) as local:
            yield Scene(local)
    except BinaryMissingError as missing:
        pytest.skip(str(missing))


class Example:
    """A copy of a producer's folder, beside what its README's commands expect there."""

    def __init__(self, language: str, place: Path, local: LocalFleet) -> None:
        name = f"producer-{language}"
        self.folder = place / "examples" / name
        shutil.copytree(ROOT / "examples" / name, self.folder, ignore=shutil.ignore_patterns("node_modules", "build"))
        (place / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "slot-vectors.json", place / "docs")
        (place / "build").mkdir()
        (place / "build" / "env").symlink_to(local.write_environment())
        text = (self.folder / "README.md").read_text()
        self.prepare, self.publish = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    def run(self, block: str) -> str:
        """What the block prints on stdout."""
        process = self._start(block, subprocess.PIPE)
        printed, errors = process.communicate(timeout=10 * PATIENCE_SECONDS)
        assert process.returncode == 0, f"{block}\n{printed}{errors}"
        return printed

    def start(self, lines: str, log: Path) -> subprocess.Popen[str]:
        """The README's producer, with these lines instead of the README's."""
        (self.folder / "lines").write_text(lines)
        before, _, program = self.publish.partition("printf")
        with log.open("w") as file:
            return self._start(
                f"{before}{program.partition('|')[2].strip()} {SLOT_BITS} {GIVE_UP_SECONDS} < lines", file
            )

    def _start(self, block: str, errors: int | IO[str]) -> subprocess.Popen[str]:
        go = os.environ.get("SHARDCTL_GO")
        path = f"{Path(go).parent}{os.pathsep}{os.environ['PATH']}" if go else os.environ["PATH"]
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip


@pytest.fixture(params=TOOLS)
def example(request, scene, tmp_path):
    missing = [
        tool for tool in TOOLS[request.param] if not (shutil.which(tool) or os.environ.get(f"SHARDCTL_{tool.upper()}"))
    ]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)} not found: .ci/run installs it")
    if missing:
        pytest.skip(f"{', '.join(missing)} isn't on the PATH")
    return Example(request.param, tmp_path, scene.local)


def test_each_write_takes_effect_once_and_in_order_through_refusals_and_lost_answers(example, scene, tmp_path):
    example.run(example.prepare)
    sample = re.search(r"printf '(.*)\\n'", example.publish)[1].split("\\t")
    _, key = example.run(example.publish).split()
    scene.published.append(Write(sample[0], json.loads(sample[3]), sample[2], sample[1], key))
    assert uuid.UUID(key).version == 7

    broker, log = scene.local.broker.host, tmp_path / "log"
    accepted = scene.messages
    admin.set_faults(broker, Faults(unavailable_rate=1.0))
    process = example.start("".join(line_of(write, number) for number, write in enumerate(scene.story)), log)
    assert wait_until(lambda: "are held" in log.read_text() or process.poll() is not None, PATIENCE_SECONDS), (
        log.read_text()
    )
    assert f"are held with {WRITES} writes, and will be resumed" in log.read_text()
    assert scene.messages == accepted
    admin.set_faults(broker, Faults(unavailable_rate=0.3, lost_reply_rate=0.3, seed=1))
    try:
        printed, _ = process.communicate(timeout=10 * PATIENCE_SECONDS)
    finally:
        admin.set_faults(broker)
    assert process.returncode == 0, log.read_text()

    rows = [line.split("\t") for line in printed.splitlines()]
    assert len({message_id for message_id, _ in rows}) == len(rows) == WRITES
    assert scene.messages > accepted + WRITES  # some were sent again, since the answer was lost
    for number, (write, (_, key)) in enumerate(zip(scene.story, rows, strict=True)):
        assert key == write.idempotency_key if with_key(number) else uuid.UUID(key).version == 7
        scene.published.append(Write(write.type, write.body, write.key, write.operation, key))
    scene.verify()


def with_key(number: int) -> bool:
    """Every other line brings an idempotency key of its own."""
    return number % 2 == 0


def line_of(write: Write, number: int) -> str:
    fields = [write.type, write.operation, write.body[f"{write.type}_id"], json.dumps(write.body, ensure_ascii=False)]
    return "\t".join([*fields, *([write.idempotency_key] if with_key(number) else [])]) + "\n"

"""The running gateway keeps what its own document promises, as schemathesis sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_kit import fleet
from gateway_process import running

from shardctl.fleet.topology import database_url_variable
from shardctl.provision import provision_database

pytestmark = pytest.mark.slow
EXAMPLES = 40


@pytest.mark.proof
def test_the_document_holds(tmp_path):
    # A sink's own type is left out: that its field may be missing when the parameter `key` is given, no schema can say.
    whole = fleet("{max_body_bytes: 4096, outcomes: {max_wait: 1s}}")
    described = {name: kind for name, kind in whole.message_types.items() if kind.columns}
    tests = str(Path(__file__).parents[2])
    whole = whole.model_copy(update={"message_types": described})
    urls = {shard: f"sqlite:///{tmp_path}/{shard.name}.db" for shard in whole.shards}
    for shard, url in urls.items():
        provision_database(whole, shard, url)
    environment = {database_url_variable(shard): url for shard, url in urls.items()}
    with running(tmp_path, whole, **environment) as (_, gateway):
        tried = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
            ],
            cwd=tmp_path,  # it leaves files where it runs
            env=os.environ | {"PYTHONPATH": tests, "SCHEMATHESIS_HOOKS": "ndjson_hooks", "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "7 passed" in tried.stdout, tried.stdout
        assert gateway.errors() == []

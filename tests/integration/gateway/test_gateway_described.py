"""The running gateway keeps what its own document promises, as schemathesis sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_kit import fleet
from gateway_process import running

pytestmark = pytest.mark.slow
EXAMPLES = 40


@pytest.mark.proof
def test_the_document_holds(tmp_path):
    # A sink's own type is left out: that its field may be missing when the parameter `key` is given, no schema can say.
    whole = fleet("{max_body_bytes: 4096}")
    described = {name: kind for name, kind in whole.message_types.items() if kind.columns}
    tests = str(Path(__file__).parents[2])
    with running(tmp_path, whole.model_copy(update={"message_types": described})) as (_, gateway):
        tried = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
            ],
            cwd=tmp_path,  # it leaves files where it runs
            env=os.environ | {"PYTHONPATH": tests, "SCHEMATHESIS_HOOKS": "ndjson_hooks", "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "4 passed" in tried.stdout, tried.stdout
        assert gateway.errors() == []

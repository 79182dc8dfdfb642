"""What several tests of rendered rules share."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own judge of rules."""
    path = shutil.which("promtool")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("promtool isn't on the PATH; in CI a skipped test is a hole that nobody sees")
        pytest.skip("promtool isn't on the PATH; Debian's package prometheus has it")
    return path

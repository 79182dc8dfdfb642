"""`shardctl up` where a part of it can't start."""

import re
from pathlib import Path

from shardctl.cli import main
from shardctl.errors import EXIT_REFUSED
from shardctl.local.servers.redis import BINARY_VARIABLE


def test_the_log_that_the_error_names_is_there(tmp_path, monkeypatch, capsys):
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho why >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv(BINARY_VARIABLE, str(program))
    assert main(["init", "-f", str(tmp_path / "shards.yaml")]) == 0
    assert main(["up", "-f", str(tmp_path / "shards.yaml"), "--dir", str(tmp_path / "build")]) == EXIT_REFUSED
    named = re.search(r"/\S+/server\.log", capsys.readouterr().err)
    assert named
    assert Path(named[0]).exists()

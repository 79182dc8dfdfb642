"""A real Prometheus that scrapes consumers."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from shardctl.local.servers.process import Server


class PrometheusServer(Server):
    """Debian's, scraping each second; `targets` has the shard of each consumer's address."""

    program = "prometheus"

    def __init__(self, folder, fleet, targets) -> None:
        super().__init__(folder)
        self._fleet, self._targets = fleet, targets

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        labels = {"namespace": "default", "app": f"{self._fleet}-consumer"}
        groups = [{"targets": [target], "labels": labels | {"shard": shard}} for target, shard in self._targets.items()]
        jobs = [{"job_name": "consumers", "static_configs": groups}]
        settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
        (self.data_dir / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML, too

    def _command(self) -> list[str]:
        program = shutil.which("prometheus")
        if program is None:
            if os.environ.get("CI"):
                pytest.fail("prometheus isn't on the PATH; in CI a skipped test is a hole that nobody sees")
            pytest.skip("prometheus isn't on the PATH; Debian's package prometheus has it")
        file, data = self.data_dir / "prometheus.yml", self.data_dir / "data"
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        return [program, f"--config.file={file}", f"--storage.tsdb.path={data}", listen]

    def _ping(self) -> bool:
        return "Server is ready to receive web requests" in self.log_tail()

"""Our own two programs as servers on loopback: the broker, and a consumer replica, started as a pod starts it."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from shardctl.broker.faults import NONE, Faults
from shardctl.local.servers.process import HOST, Server
from shardctl.status.metricspage import read_metrics

PROBE_SECONDS = 2.0


class BrokerProcess(Server):
    """The embedded Pub/Sub. Everything is in its memory: stopping it forgets topics, subscriptions and messages."""

    program: ClassVar[str] = "broker"

    def __init__(self, data_dir: Path, port: int = 0, *, faults: Faults = NONE) -> None:
        super().__init__(data_dir, port)
        self.rest_port = 0  # any; settled with its first start
        self._faults = faults

    @property
    def host(self) -> str:
        """What PUBSUB_EMULATOR_HOST is set to."""
        return f"{HOST}:{self.port}"

    @property
    def rest_url(self) -> str:
        """For gcloud and other clients of the REST API."""
        return f"http://{HOST}:{self.rest_port}"

    def _prepare(self) -> None:
        """Nothing lies on disk but the log."""

    def _command(self) -> list[str]:
        options = []
        for name, value in dataclasses.asdict(self._faults).items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                options.append(option)
            elif value is not False:
                options += [option, str(value)]
        ports = ["--port", str(self.port), "--rest-port", str(self.rest_port)]
        return [sys.executable, "-m", "shardctl.broker", "--host", HOST, *ports, *options]

    def _ping(self) -> bool:
        """Its own log distinguishes it from any other broker at that port."""
        log = self.log_tail()
        if f"broker ready: PUBSUB_EMULATOR_HOST={self.host}" not in log:
            return False
        self.rest_port = int(re.findall(r"REST API: \S+:(\d+)", log)[-1])
        return True


class ConsumerProcess(Server):
    """One replica of one shard: `python -m consumer`, configured by a file and by environment, as a pod is.

    `environment` holds what a pod takes from Secrets; set it before the start.
    `restarts` counts how often it was restarted after it ended by itself.
    """

    program: ClassVar[str] = "consumer"

    def __init__(self, data_dir: Path, name: str, config: Path) -> None:
        super().__init__(data_dir)
        self.name = name
        self.environment: Mapping[str, str] = {}
        self.restarts = 0
        self._config = config.absolute()
        self._wanted = False

    @property
    def ready(self) -> bool:
        """Whether the readiness probe would succeed."""
        return self.running and self._ping()

    @property
    def why_not_ready(self) -> str:
        """The readiness probe's reason when it fails; empty when it succeeds, or without an answer."""
        status, text = self._get("/ready")
        return text if status == 503 else ""

    @property
    def died(self) -> bool:
        """True once it has ended without being stopped: Kubernetes would restart it."""
        return self._wanted and not self.running

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return None if self._process is None else self._process.poll()

    def start(self, timeout_seconds: float = 30.0) -> ConsumerProcess:
        self._wanted = True
        return super().start(timeout_seconds)

    def stop(self, timeout_seconds: float = 30.0) -> None:
        self._wanted = False
        super().stop(timeout_seconds)

    def kill(self) -> None:
        """SIGKILL; it stays down until started again."""
        self._wanted = False
        super().kill()

    def terminate(self) -> None:
        """SIGTERM, as Kubernetes sends it, without waiting for the end."""
        self._wanted = False
        if self.running:
            os.kill(self.pid, signal.SIGTERM)

    def revive(self) -> None:
        """Restart it after its end, without waiting until it is ready."""
        self.restarts += 1
        self._wanted = True
        self._prepare()
        self._spawn()

    def metrics(self) -> dict[str, float]:
        """Its counters and gauges by name, label values summed up; empty while it doesn't answer."""
        status, text = self._get("/metrics")
        return read_metrics(text) if status == 200 else {}

    def _prepare(self) -> None:
        """Nothing lies on disk but the log."""

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "consumer", "--config", str(self._config)]

    def _spawn_options(self) -> dict[str, Any]:
        own = {"HOST": HOST, "PORT": str(self.port), "POD_NAME": self.name}
        return {"env": {**os.environ, **self.environment, **own}}

    def _ping(self) -> bool:
        return self._get("/ready")[0] == 200

    def _get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 without an answer."""
        with socket.socket() as probe:  # refused in microseconds; a whole HTTP client would cost CPU during the start
            probe.settimeout(PROBE_SECONDS)
            if probe.connect_ex((HOST, self.port)):
                return 0, ""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=PROBE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

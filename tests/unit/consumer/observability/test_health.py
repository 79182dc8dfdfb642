"""Probes and metrics, asked over HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from patience import PATIENCE_SECONDS

from consumer.observability.health import Health
from consumer.observability.metrics import Metrics


def get(health, path, host="127.0.0.1"):
    try:
        with urllib.request.urlopen(f"http://{host}:{health.port}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


@pytest.mark.slow
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_probes_answer_pods_of_either_family(host):
    health = Health("::", 0, Metrics(), lambda: None)
    try:
        assert get(health, "/ready", host) == (200, "ready\n")
    finally:
        health.close()


def test_probes_and_metrics_answer():
    why = ["still starting"]
    metrics = Metrics()
    health = Health("127.0.0.1", 0, metrics, lambda: why[0])
    try:
        assert get(health, "/health") == (200, "ok\n")
        assert get(health, "/ready") == (503, "not ready: still starting\n")
        why[0] = None
        assert get(health, "/ready") == (200, "ready\n")
        metrics.applied.inc(3)
        assert "shardctl_messages_applied_total 3.0" in get(health, "/metrics")[1]
        assert get(health, "/else")[0] == 404
        health._last_beat -= 60
        assert get(health, "/health")[0] == 503
    finally:
        health.close()

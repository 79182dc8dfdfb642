"""One run: start, hurt, heal, drain, judge."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from shardctl.local.processes import ConsumerProcess
from tests.chaos import planted
from tests.chaos.campaign import Campaign
from tests.chaos.report import Plan, Report, Watch
from tests.chaos.scene import Scene


def run(plan: Plan, watch: Watch) -> Report:
    """The whole of it. Raises ShardctlError when the fleet doesn't start."""
    scene = Scene(plan.directory)
    scene.local.keep = True  # an end by surprise leaves everything to look at
    try:
        with _mistaken_consumers(plan.mistake):
            watch.stage(f"seed {plan.seed}: starting a broker, Redis, PostgreSQL and the consumers")
            scene.start()
            campaign = Campaign(scene, plan, watch)
            campaign.hurt()
            campaign.drain()
            report = campaign.judge()
        scene.local.keep = plan.keep or not report.ok
    finally:
        scene.local.stop()
    if not scene.local.keep:
        shutil.rmtree(plan.directory, ignore_errors=True)
    return report


@contextmanager
def _mistaken_consumers(mistake: str) -> Iterator[None]:
    if not mistake:
        yield
        return
    right = ConsumerProcess._command

    def command(consumer: ConsumerProcess) -> list[str]:
        _, _, program, *arguments = right(consumer)  # python -m consumer …
        return [*planted.command(mistake, program), *arguments]

    with patch.object(ConsumerProcess, "_command", command):
        yield

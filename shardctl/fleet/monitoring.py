"""What `monitoring` asks of the fleet's other settings."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from shardctl.fleet.settings.monitoring import Monitoring
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

EVALUATED_EVERY = timedelta(seconds=30)  # by Cloud Monitoring, or at a multiple of it
OWN = ("managed_collection", "notification_channels")  # settings of cloud-monitoring alone
LOGGED = ("debug", "info")  # the levels that log that trouble is over


def faults(fleet: Fleet) -> Iterator[Fault]:
    watching = fleet.monitoring
    if watching.stack != "cloud-monitoring":
        for name in OWN:
            if getattr(watching, name) != Monitoring.model_fields[name].default:
                yield Fault(
                    ("monitoring", name),
                    f"it belongs to cloud-monitoring, and the stack is {watching.stack}.",
                    "leave it out, or choose `stack: cloud-monitoring`.",
                )
        return
    if fleet.provisioner == "api":
        yield Fault(
            ("monitoring",),
            "`provisioner: api` makes topics and subscriptions alone, and no alert policies.",
            "choose config-connector, terraform or gcloud, or another stack.",
        )
    if watching.evaluation_interval % EVALUATED_EVERY:
        yield Fault(
            ("monitoring", "evaluation_interval"),
            "Cloud Monitoring evaluates a query every 30 s, or at a multiple of that.",
            "use 30s, 1m or 90s, for instance.",
        )
    if watching.by_logs:
        yield from _left_out_of_logs(fleet)


def _left_out_of_logs(fleet: Fleet) -> Iterator[Fault]:
    """Alerts that go by logs take all of their lines, those among them that say that trouble is over."""
    levels: list[tuple[tuple[str | int, ...], str]] = [(("consumer",), fleet.consumer.log_level)]
    for number, shard in enumerate(fleet.shards):
        if shard.consumer.log_level != fleet.consumer.log_level:
            levels.append((("shards", number, "consumer"), shard.consumer.log_level))
    if fleet.gateway and fleet.gateway.auth.kind != "none":
        levels.append((("gateway",), fleet.gateway.log_level))
    for path, level in levels:
        if level not in LOGGED:
            yield Fault(
                (*path, "log_level"),
                f"alerts of cloud-monitoring go by log lines that {level!r} leaves out.",
                "use info, or `managed_collection: true` in `monitoring`.",
            )

"""The series of alerts and dashboard as PromQL, under the names of each monitoring stack.

Three sources: the consumers themselves; Cloud Monitoring, for Pub/Sub's own metrics; and the cluster, for pods and memory. Where
nothing scrapes the consumers, their logs, counted by `logmetrics`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render import logmetrics

_BACKLOG, _OLDEST_AGE = "num_undelivered_messages", "oldest_unacked_message_age"
_REPLICAS = {
    "deployment": ("deployment", "kube_deployment_spec_replicas", "kube_deployment_status_replicas_available"),
    "statefulset": ("statefulset", "kube_statefulset_replicas", "kube_statefulset_status_replicas_ready"),
}
_POD_SUFFIX = {"deployment": "-[a-z0-9]+-[a-z0-9]+", "statefulset": "-[0-9]+"}


@dataclass(frozen=True)
class Series:
    fleet: Fleet

    def own(self, name: str, shards: Iterable[str] = ()) -> str:
        """A metric of the consumers: `shardctl_…`; of some shards, where they are named."""
        chosen = f',shard=~"{"|".join(shards)}"' if shards else ""
        return f'{name}{{namespace="{self.fleet.namespace}",app="{self.fleet.fleet}-consumer"{chosen}}}'

    def gateways(self, name: str) -> str:
        """A metric of the gateway: `shardctl_gateway_…`."""
        return f'{name}{{namespace="{self.fleet.namespace}",app="{self.fleet.fleet}-gateway"}}'

    def outboxes(self, name: str) -> str:
        """A metric of the relays, those that consumers hold and the one of its own: `shardctl_outbox_…`."""
        return f'{name}{{namespace="{self.fleet.namespace}",app=~"{self.fleet.fleet}-(consumer|relay)"}}'

    def relays(self, name: str) -> str:
        """The same of the relay of its own alone."""
        return f'{name}{{namespace="{self.fleet.namespace}",app="{self.fleet.fleet}-relay"}}'

    def rate(self, name: str, window: str = "5m", by: str = "shard") -> str:
        return f"sum by ({by}) (rate({self.own(name)}[{window}]))"

    def quantile(self, quantile: float, name: str) -> str:
        return f"histogram_quantile({quantile}, {self.rate(f'{name}_bucket', by='shard, le')})"

    def logged(self, metric: str, window: str, by: str = "shard") -> str:
        """How many of a log-based metric's log lines came within the window."""
        return f"{_sum(by)} (increase({self._of_logs(metric)}[{window}]))"

    def logged_rate(self, metric: str, by: str = "shard") -> str:
        return f"{_sum(by)} (rate({self._of_logs(metric)}[5m]))"

    def _of_logs(self, metric: str) -> str:
        name = re.sub(r"[^a-zA-Z0-9]", "_", logmetrics.metric_id(self.fleet, metric))
        return f'logging_googleapis_com:user_{name}{{monitored_resource="k8s_container",project_id="{self.fleet.project}"}}'

    def acked(self, function: str, window: str) -> str:
        """Messages of a shard that Pub/Sub got acks for, as a `rate` or an `increase`."""
        metric, more = "ack_message_count", ""
        if self.fleet.delivery.kind == "push":
            metric, more = "push_request_count", ',response_class="ack"'
        counted = self._pubsub(self._google(metric), self._subscriptions, more)
        return f"sum by (shard) ({self._with_shard(f'{function}({counted}[{window}])')})"

    @cached_property
    def sent(self) -> str:
        """Messages a second that Pub/Sub sends to a shard, those sent again among them."""
        metric = "push_request_count" if self.fleet.delivery.kind == "push" else "sent_message_count"
        counted = self._pubsub(self._google(metric), self._subscriptions)
        return f"sum by (shard) ({self._with_shard(f'rate({counted}[5m])')})"

    @cached_property
    def running(self) -> str:
        """Seconds that each consumer's container has been running, by Google Cloud's own metrics."""
        return self._container("uptime")

    @cached_property
    def restarts(self) -> str:
        """How often a pod's consumer was started again within ten minutes."""
        return f"sum by (pod_name) (increase({self._container('restart_count')}[10m]))"

    def _container(self, metric: str) -> str:
        pods = "|".join(shards + _POD_SUFFIX[kind] for kind, shards in self._by_workload.items())
        return f"kubernetes_io:container_{metric}{{{self._k8s_container(pods)}}}"

    def _k8s_container(self, pods: str, more: str = "") -> str:
        return (
            f'monitored_resource="k8s_container",project_id="{self.fleet.project}",namespace_name="{self.fleet.namespace}",'
            f'container_name="consumer",{more}pod_name=~"{pods}"'
        )

    def available(self, component: str) -> str:
        """Pods of the gateway or of the relay that are available, from kube-state-metrics."""
        chosen = f'namespace="{self.fleet.namespace}",deployment="{self.fleet.fleet}-{component}"'
        return f"kube_deployment_status_replicas_available{{{chosen}}}"

    @cached_property
    def backlog(self) -> str:
        """Undelivered messages by shard, over all of its subscriptions."""
        return f"sum by (shard) ({self._with_shard(self._pubsub(self._backlog_metric, self._subscriptions))})"

    @cached_property
    def oldest_age(self) -> str:
        """Seconds since the oldest unacked message of a shard was published."""
        return f"max by (shard) ({self._with_shard(self._pubsub(self._oldest_age_metric, self._subscriptions))})"

    @cached_property
    def dead_letters(self) -> str:
        return f"sum({self._pubsub(self._backlog_metric, topology.dead_letter_subscription(self.fleet))})"

    @cached_property
    def strays(self) -> str:
        return f"sum({self._pubsub(self._backlog_metric, topology.strays_pattern(self.fleet))})"

    @cached_property
    def unavailable(self) -> str:
        """Pods that a shard should have and doesn't, from kube-state-metrics."""
        return " or ".join(self._missing(kind, shards) for kind, shards in self._by_workload.items())

    def _missing(self, kind: str, shards: str) -> str:
        label, wanted, available = _REPLICAS[kind]
        chosen = f'{{namespace="{self.fleet.namespace}",{label}=~"{shards}"}}'
        missing = f"max by ({label}) ({wanted}{chosen}) - max by ({label}) ({available}{chosen})"
        return f"max by (shard) ({_labelled(missing, label, shards)})"

    @cached_property
    def memory(self) -> str:
        """What a consumer's container uses of its memory limit, 0 to 1, by shard and pod."""
        return " or ".join(self._memory(shards + _POD_SUFFIX[kind]) for kind, shards in self._by_workload.items())

    def _memory(self, pods: str) -> str:
        space = self.fleet.namespace
        if self.fleet.monitoring.stack != "prometheus-operator":
            chosen = self._k8s_container(pods, 'memory_type="non-evictable",')
            used = f"kubernetes_io:container_memory_limit_utilization{{{chosen}}}"
            ratio = f'max by (pod) (label_replace({used}, "pod", "$1", "pod_name", "(.*)"))'
        else:
            chosen = f'namespace="{space}",container="consumer",pod=~"{pods}"'
            ratio = (
                f"max by (pod) (container_memory_working_set_bytes{{{chosen}}})"
                f' / max by (pod) (kube_pod_container_resource_limits{{{chosen},resource="memory"}})'
            )
        return _labelled(ratio, "pod", pods)

    @cached_property
    def _shards(self) -> str:
        return self._named(shard.name for shard in self.fleet.shards)

    @cached_property
    def _by_workload(self) -> Mapping[str, str]:
        names: dict[str, list[str]] = {}
        for shard in self.fleet.shards:
            names.setdefault(shard.workload.kind, []).append(shard.name)
        return {kind: self._named(of_kind) for kind, of_kind in sorted(names.items())}

    def _named(self, names: Iterable[str]) -> str:
        return f"{self.fleet.fleet}-({'|'.join(names)})"

    @cached_property
    def _subscriptions(self) -> str:
        # Of any generation, so that a rebalance changes no rule.
        return f"{self._shards}-g[0-9]+(-t[0-9]+)?"

    @property
    def _backlog_metric(self) -> str:
        return self.fleet.monitoring.backlog_metric or self._google(_BACKLOG)

    @property
    def _oldest_age_metric(self) -> str:
        return self.fleet.monitoring.oldest_age_metric or self._google(_OLDEST_AGE)

    def _google(self, metric: str) -> str:
        """A metric of subscriptions by its Prometheus name in Cloud Monitoring, or as stackdriver_exporter names it."""
        if self.fleet.monitoring.stack == "prometheus-operator":
            return f"stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_{metric}"
        return f"pubsub_googleapis_com:subscription_{metric}"

    def _pubsub(self, metric: str, subscriptions: str, more: str = "") -> str:
        return f'{metric}{{project_id="{self.fleet.project}",subscription_id=~"{subscriptions}"{more}}}'

    def _with_shard(self, vector: str) -> str:
        return _labelled(vector, "subscription_id", self._subscriptions)


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _labelled(vector: str, label: str, pattern: str) -> str:
    """The vector with a label `shard`, which is the pattern's first group."""
    return f'label_replace({vector}, "shard", "$1", "{label}", "{pattern}")'

"""The series of alerts and dashboard as PromQL, under the names of each monitoring stack.

Three sources: the consumers themselves; Cloud Monitoring, for Pub/Sub's own metrics; and the cluster, for pods and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet

# By the Prometheus names of Cloud Monitoring's metrics, and by those that stackdriver_exporter gives them.
_BACKLOG = {
    "managed-prometheus": "pubsub_googleapis_com:subscription_num_undelivered_messages",
    "prometheus-operator": "stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_num_undelivered_messages",
}
_OLDEST_AGE = {
    "managed-prometheus": "pubsub_googleapis_com:subscription_oldest_unacked_message_age",
    "prometheus-operator": "stackdriver_pubsub_subscription_pubsub_googleapis_com_subscription_oldest_unacked_message_age",
}
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

    def rate(self, name: str, window: str = "5m", by: str = "shard") -> str:
        return f"sum by ({by}) (rate({self.own(name)}[{window}]))"

    def quantile(self, quantile: float, name: str) -> str:
        return f"histogram_quantile({quantile}, {self.rate(f'{name}_bucket', by='shard, le')})"

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
        if self.fleet.monitoring.stack == "managed-prometheus":
            used = (
                'kubernetes_io:container_memory_limit_utilization{monitored_resource="k8s_container",'
                f'project_id="{self.fleet.project}",namespace_name="{space}",container_name="consumer",'
                f'memory_type="non-evictable",pod_name=~"{pods}"}}'
            )
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
        return self.fleet.monitoring.backlog_metric or _BACKLOG[self.fleet.monitoring.stack]

    @property
    def _oldest_age_metric(self) -> str:
        return self.fleet.monitoring.oldest_age_metric or _OLDEST_AGE[self.fleet.monitoring.stack]

    def _pubsub(self, metric: str, subscriptions: str) -> str:
        return f'{metric}{{project_id="{self.fleet.project}",subscription_id=~"{subscriptions}"}}'

    def _with_shard(self, vector: str) -> str:
        return _labelled(vector, "subscription_id", self._subscriptions)


def _labelled(vector: str, label: str, pattern: str) -> str:
    """The vector with a label `shard`, which is the pattern's first group."""
    return f'label_replace({vector}, "shard", "$1", "{label}", "{pattern}")'

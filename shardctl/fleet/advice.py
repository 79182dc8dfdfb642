"""Advice and warnings on a valid fleet: sentences for `shardctl validate`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.fleet import backends, cloudsql, residency, topology
from shardctl.fleet.names import listed
from shardctl.fleet.spec import Fleet

MANY_DELIVERIES = 6
LEADER_AND_STANDBY = 2
ENOUGH_PUSH_ATTEMPTS = 50


def advice(fleet: Fleet) -> tuple[str, ...]:
    return (
        *_on_capacity(fleet),
        *_on_replicas(fleet),
        *_on_filters(fleet),
        *_on_times(fleet),
        *_on_push(fleet),
        *backends.advice(fleet),
        *cloudsql.advice(fleet),
    )


def warnings(fleet: Fleet) -> tuple[str, ...]:
    """Risks of a valid fleet that an operator must accept knowingly."""
    return (*_on_the_open_gateway(fleet), *residency.warnings(fleet), *cloudsql.warnings(fleet))


def _on_the_open_gateway(fleet: Fleet) -> Iterator[str]:
    gateway = fleet.gateway
    if gateway is None or gateway.auth.kind != "none":
        return
    limits = "" if gateway.rate_limit else ", and without a limit (gateway.rate_limit)"
    reach = "from any namespace"
    if fleet.network_policy is not None and gateway.from_namespaces:
        reach = f"from the namespaces {', '.join(gateway.from_namespaces)}"
    yield (
        f"gateway.auth is none: anyone who reaches Service {fleet.fleet}-gateway, {reach}, can write every message type as "
        f"anybody{limits}. Give auth with kind: keys or kind: oidc, unless something before the gateway decides who may write."
    )


def _on_capacity(fleet: Fleet) -> Iterator[str]:
    capped = [shard.name for shard in fleet.shards if shard.autoscaling.most > len(shard.slots)]
    if capped:
        yield f"autoscaling.max is over the number of slots, and more replicas would idle: {listed(capped)}."
    factor = topology.delivery_factor(fleet)
    if factor > MANY_DELIVERIES:
        yield (
            f"each message is delivered {factor:g} times, since Pub/Sub charges each subscription of a topic for all its "
            "messages. routing.topic_bits spreads the slots over topics (it can't be changed later)."
        )


def _on_replicas(fleet: Fleet) -> Iterator[str]:
    scaling = {shard.name: shard.autoscaling for shard in fleet.shards}
    alone = [name for name, wanted in scaling.items() if wanted.min == 1]
    if alone:
        yield (
            "autoscaling.min is 1: while that pod is moved to another node, or after a crash, nobody reads the shard until the "
            f"next one has started: {listed(alone)}."
        )
    asleep = [name for name, wanted in scaling.items() if wanted.min == 0]
    if asleep:
        by_keda = [int(scaling[name].keda.polling.total_seconds()) for name in asleep if scaling[name].kind == "keda"]
        asks = f"for KEDA to ask (up to {max(by_keda)} s)" if by_keda else "for the autoscaler to ask"
        yield (
            "autoscaling.min is 0: the first writes after a quiet time wait for the backlog to show in Cloud Monitoring (two to "
            f"three minutes), {asks} and for a pod to start: {listed(asleep)}."
        )
    by_hpa = [name for name in asleep if scaling[name].kind == "hpa"]
    if by_hpa:
        yield (
            "autoscaling: hpa with min 0 needs Kubernetes 1.37 or newer; an older API server refuses the autoscaler. `shardctl "
            f"apply` checks the cluster's version first: {listed(by_hpa)}."
        )
    led = [shard.name for shard in fleet.shards if shard.leader.kind != "none"]
    idle = [name for name in led if scaling[name].most > LEADER_AND_STANDBY]
    if idle:
        yield (
            f"leader: one replica of a shard writes, so more than {LEADER_AND_STANDBY} mostly stand by, and scaling with "
            f"the load makes nothing faster; autoscaling: {{kind: none, min: {LEADER_AND_STANDBY}}} suits: {listed(idle)}."
        )
    lonely = [name for name in led if scaling[name].most < LEADER_AND_STANDBY]
    if lonely:
        yield f"leader: with one replica there is no standby to replace a leader that dies: {listed(lonely)}."
    left_on = [
        name
        for name, wanted in scaling.items()
        if wanted.min == 0 and wanted.kind == "keda" and wanted.keda.activation_backlog
    ]
    if left_on:
        yield (
            "autoscaling.keda.activation_backlog lets that many messages wait unwritten until more arrive: "
            f"{listed(left_on)}."
        )


def _on_filters(fleet: Fleet) -> Iterator[str]:
    for stray in topology.strays(fleet):
        if stray.blind:
            yield (
                f"topic {stray.topic.id}: the filters have no room for every malformed slot; Pub/Sub would drop what "
                f"breaks off after {listed(list(stray.blind))}. Rounder slot boundaries fix it."
            )


def _on_times(fleet: Fleet) -> Iterator[str]:
    settings = {shard.name: shard.consumer for shard in fleet.shards}
    deadline = fleet.subscription.ack_deadline
    slow = [name for name, consumer in settings.items() if consumer.statement_timeout > deadline]
    if slow:
        yield (
            "consumer.statement_timeout is over subscription.ack_deadline: where leases can't be renewed, a slow "
            f"statement's messages are processed twice (and applied once): {listed(slow)}."
        )
    stuck = [name for name, consumer in settings.items() if consumer.lock_ttl > consumer.lease]
    if stuck:
        yield (
            "consumer.lock_ttl is over consumer.lease: after a crash a slot's messages are redelivered before its lock is "
            f"free: {listed(stuck)}."
        )


def _on_push(fleet: Fleet) -> Iterator[str]:
    if fleet.delivery.kind != "push":
        return
    attempts = fleet.subscription.max_delivery_attempts
    if attempts < ENOUGH_PUSH_ATTEMPTS:
        yield (
            "delivery: push counts each refused request, while a database is down or pods start, as a failed attempt, and "
            f"after {attempts} of them Pub/Sub dead-letters a valid write; subscription.max_delivery_attempts: 100 allows hours."
        )
    stopping = [shard.name for shard in fleet.shards if not shard.workload.pre_stop]
    if stopping:
        yield (
            "delivery: push goes to pods that are about to stop until the load balancer knows; workload.pre_stop: 10s keeps them "
            f"answering until then: {listed(stopping)}."
        )

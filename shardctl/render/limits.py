"""What the pods may connect to, what they may consume, and where their credentials come from: each only on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from shardctl.fleet import backends, cloudsql, gateways, memorystore, quantities, sqlproxies
from shardctl.fleet.credentials import credentials
from shardctl.fleet.settings.cluster import NetworkPolicy, Reach, Resources, Workload
from shardctl.fleet.settings.redis import host_and_port
from shardctl.fleet.spec import Fleet, Shard
from shardctl.render.cloudsql import resources
from shardctl.render.objects import Object, Plan, seconds_text
from shardctl.render.rbac import asks_kubernetes
from shardctl.render.scaling import max_replicas

METADATA_SERVER = (
    Reach(ports=(80, 8080), cidrs=("169.254.169.254/32",)),  # as pods name it, and as Dataplane V2 sees it
    Reach(ports=(987, 988), cidrs=("169.254.169.252/32",)),  # where GKE redirects it without Dataplane V2
)
SQL_PORTS = Reach(ports=(5432, 3306))  # of a database of which nothing more is known


@dataclass(frozen=True, slots=True)
class Rule:
    """Ports, each with its protocol, and the last where it is a range, at these addresses; anywhere when there are none."""

    ports: tuple[tuple[str, int, int | None], ...]
    cidrs: tuple[str, ...]


def namespaces(plan: Plan) -> Iterator[Object]:
    if plan.whole and plan.fleet.create_namespace:
        yield plan.object("Namespace", plan.fleet.namespace, None)


def network_policies(plan: Plan) -> Iterator[Object]:
    for writer in plan.writers:
        policy = writer.shard.network_policy
        if policy is not None:
            yield plan.object(
                "NetworkPolicy",
                writer.id,
                writer,
                app=plan.app,
                shard=writer.shard.name,
                from_namespaces=policy.from_namespaces,
                push_from=policy.push_from if plan.fleet.delivery.kind == "push" else None,
                egress=tuple(
                    _egress(
                        policy,
                        redis=policy.redis or Reach(ports=_redis_ports(plan.fleet)),
                        database=database_reach(policy, writer.shard),
                        asks_kubernetes=asks_kubernetes(writer),
                        backend_ports=backends.ports(plan.fleet, writer.shard),
                    )
                ),
            )


def database_reach(policy: NetworkPolicy, shard: Shard) -> Reach:
    """Where the shard's database is: as its policy says, or by the ports that it may have, anywhere."""
    return policy.database or (Reach(ports=(cloudsql.INSTANCE_PORT,)) if cloudsql.instance_of(shard) else SQL_PORTS)


def _redis_ports(fleet: Fleet) -> tuple[int | str, ...]:
    """As far as the file says: all nodes of a cluster listen where the named ones do, and servers behind Sentinels at 6379."""
    cluster, sentinel = fleet.redis.cluster, fleet.redis.sentinel
    if cluster:
        return tuple(sorted({host_and_port(node)[1] for node in cluster}))
    if sentinel:
        return tuple(sorted({memorystore.PORT, *(host_and_port(node)[1] for node in sentinel.nodes)}))
    return memorystore.ports_of(fleet.redis.memorystore) if fleet.redis.memorystore else (memorystore.PORT,)


def _egress(
    policy: NetworkPolicy, *, redis: Reach, database: Reach, asks_kubernetes: bool, backend_ports: tuple[int, ...]
) -> Iterator[Rule]:
    yield rule_of(policy.dns, "UDP", "TCP")
    for reach in (*METADATA_SERVER, policy.google_apis, redis, database, *policy.also):
        yield rule_of(reach, "TCP")
    if asks_kubernetes:
        yield rule_of(policy.kubernetes_api, "TCP")
    if backend_ports:
        yield rule_of(policy.backends or Reach(ports=backend_ports), "TCP")


def rule_of(reach: Reach, *protocols: str) -> Rule:
    ends = [str(ports).partition("-")[::2] for ports in reach.ports]
    ports = [(int(first), int(last) if last else None) for first, last in ends]
    return Rule(tuple((protocol, *port) for port in ports for protocol in protocols), reach.cidrs)


def certificates(fleet: Fleet) -> Iterator[Mapping[str, Any]]:
    """The fleet's own as a pod mounts them: where the fleet's URLs name them."""
    for number, (secret, keys) in enumerate(sorted(fleet.certificates.items())):
        path = f"{backends.SECRETS_DIRECTORY}/{secret}"
        yield {"volume": f"secret-{number}", "secret": secret, "files": sorted(keys), "path": path}


def external_secrets(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    if fleet.secrets.kind != "external-secrets":
        return
    writers = {writer.shard.name: writer for writer in plan.writers}
    for credential in credentials(fleet):
        owner = writers.get(credential.shard.name) if credential.shard else None
        if owner or (credential.shard is None and plan.whole):
            yield plan.object(
                "ExternalSecret",
                credential.name,
                owner,
                keys=credential.keys,
                refresh=seconds_text(fleet.secrets.refresh),
                store=fleet.secrets.store,
            )


def resource_quotas(plan: Plan) -> Iterator[Object]:
    if plan.whole and plan.fleet.resource_quota is not None:
        yield plan.object("ResourceQuota", plan.fleet.fleet, None, hard=tuple(_most(plan.fleet)))


def _most(fleet: Fleet) -> Iterable[tuple[str, str]]:
    """What the whole fleet requests at its largest, with every shard in a rollout."""
    totals: dict[str, Fraction] = {}

    def add(resource: str, amount: Fraction) -> None:
        totals[resource] = totals.get(resource, Fraction()) + amount

    def add_pods(pods: int, *containers: Resources) -> None:
        add("pods", Fraction(pods))
        for container in containers:
            for resource, quantity in (
                ("requests.cpu", container.cpu),
                ("requests.memory", container.memory),
                ("requests.ephemeral-storage", container.ephemeral_storage),
                ("limits.cpu", container.cpu_limit),
                ("limits.memory", container.memory_limit),
                ("limits.ephemeral-storage", container.ephemeral_storage_limit),
            ):
                add(resource, pods * quantities.read(quantity))

    for shard in fleet.shards:
        workload = shard.workload
        pods = max_replicas(shard) + _surge(workload)
        add_pods(pods, shard.resources, *resources(shard))
        if workload.storage:
            add("persistentvolumeclaims", Fraction(pods))
            add("requests.storage", pods * quantities.read(workload.storage.size))
    if fleet.gateway:
        proxies = [made.cloud_sql.proxy.resources for made in gateways.instances(fleet)]
        add_pods(fleet.gateway.autoscaling.most + 1, fleet.gateway.resources, *proxies[:1])
    if fleet.relay:
        add_pods(fleet.relay.replicas + 1, fleet.relay.resources)
    if fleet.operator:  # one Job at a time
        proxies = [made.cloud_sql.proxy.resources for made in sqlproxies.instances(fleet)]
        add_pods(1, fleet.operator.resources, *proxies[:1])
    headroom = 1 + Fraction(fleet.resource_quota.headroom_percent if fleet.resource_quota else 0, 100)
    return [(resource, _written(resource, total * headroom)) for resource, total in totals.items()]


def _written(resource: str, total: Fraction) -> str:
    if resource.endswith("cpu"):
        return quantities.cores(total)
    return quantities.whole(total) if resource in ("pods", "persistentvolumeclaims") else quantities.bytes_of(total)


def _surge(workload: Workload) -> int:
    return workload.max_surge if workload.kind == "deployment" else 0

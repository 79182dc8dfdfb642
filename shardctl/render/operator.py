"""The operator's objects: the identity of commands that run as Jobs in the cluster. None, unless the file asks for it."""

from __future__ import annotations

from collections.abc import Iterator

from shardctl.fleet import operators, sqlproxies, topology
from shardctl.fleet.serviceaccounts import account_id
from shardctl.fleet.settings.cluster import Reach
from shardctl.fleet.spec import Fleet
from shardctl.render import cloudsql
from shardctl.render.limits import METADATA_SERVER, database_reach, rule_of
from shardctl.render.objects import Object, Plan, object_name


def _is_wanted(plan: Plan) -> bool:
    return plan.whole and plan.fleet.operator is not None


def labels(plan: Plan) -> tuple[tuple[str, str], ...]:
    name = operators.name_of(plan.fleet)
    own = {
        "app": name,
        "app.kubernetes.io/name": "shardctl-operator",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": "operator",
    }
    return tuple(sorted({**dict(plan.labels), **own}.items()))


# --- in Google Cloud --------------------------------------------------------------------------------------------------


def accounts(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    if _is_wanted(plan):
        yield _object(
            plan,
            "IAMServiceAccount",
            project=fleet.project,
            account_id=account_id(operators.name_of(fleet)),
            display_name=f"Operator of fleet {fleet.fleet}",
        )


def grants(plan: Plan) -> Iterator[Object]:
    """What the operator's commands need together, and leave to connect to the instances of Cloud SQL."""
    if not _is_wanted(plan):
        return
    fleet, name = plan.fleet, operators.name_of(plan.fleet)
    yield _object(
        plan,
        "IAMPolicyMember",
        f"{name}-workload-identity",
        role="roles/iam.workloadIdentityUser",
        resource_kind="IAMServiceAccount",
        resource_name=name,
        member=f"serviceAccount:{fleet.project}.svc.id.goog[{fleet.namespace}/{name}]",
        member_account=None,
    )
    for right in operators.rights(fleet):
        for kind, resource in _places(fleet, right.on):
            about = "" if kind == "Project" else f"{resource}-"
            outside = {"resource_external": f"projects/{resource}"} if kind == "Project" else {}
            yield _object(
                plan,
                "IAMPolicyMember",
                f"{name}-{about}{right.role.removeprefix('roles/').replace('.', '-')}",
                role=right.role,
                resource_kind=kind,
                resource_name=resource,
                member=None,
                member_account=name,
                **outside,
            )
    for grant, fields in cloudsql.shared_grants(sqlproxies.instances(fleet), name):
        yield _object(plan, "IAMPolicyMember", grant, **fields)


def _places(fleet: Fleet, on: operators.On) -> Iterator[tuple[str, str]]:
    match on:
        case "project":
            yield "Project", fleet.project
        case "topics":
            for topic in topology.topics(fleet):
                yield "PubSubTopic", object_name(topic.id)
        case "letters":
            for subscription in (topology.dead_letter_subscription(fleet), *(s.id for s in topology.strays(fleet))):
                yield "PubSubSubscription", subscription


def users(plan: Plan) -> Iterator[Object]:
    if _is_wanted(plan):
        account, email = operators.name_of(plan.fleet), operators.email(plan.fleet)
        for user in cloudsql.shared_users(sqlproxies.instances(plan.fleet), account, email):
            yield _object(plan, "SQLUser", user.name, user=user)


# --- on the cluster ---------------------------------------------------------------------------------------------------


def service_accounts(plan: Plan) -> Iterator[Object]:
    if _is_wanted(plan):
        yield _object(plan, "ServiceAccount", account_email=operators.email(plan.fleet))


def config_maps(plan: Plan) -> Iterator[Object]:
    """Where a Job keeps the files that it changes. Empty here: `shardctl job` fills it."""
    if _is_wanted(plan):
        yield _object(plan, "ConfigMap", template="operatorconfigmap")


def roles(plan: Plan) -> Iterator[Object]:
    if _is_wanted(plan):
        yield _object(plan, "Role", template="operatorrole", files=operators.name_of(plan.fleet))


def role_bindings(plan: Plan) -> Iterator[Object]:
    if _is_wanted(plan):
        yield _object(plan, "RoleBinding", account=operators.name_of(plan.fleet))


def network_policies(plan: Plan) -> Iterator[Object]:
    """To every shard's database, as that shard's own policy allows it, to Google's APIs and to the cluster's."""
    fleet, policy = plan.fleet, plan.fleet.network_policy
    if not _is_wanted(plan) or policy is None:
        return
    databases = [database_reach(shard.network_policy or policy, shard) for shard in fleet.shards]
    reached: list[Reach] = [*METADATA_SERVER, policy.google_apis, *databases, policy.kubernetes_api]
    egress = [rule_of(policy.dns, "UDP", "TCP"), *(rule_of(reach, "TCP") for reach in reached)]
    yield _object(
        plan,
        "NetworkPolicy",
        template="operatornetworkpolicy",
        app=operators.name_of(fleet),
        egress=tuple(dict.fromkeys(egress)),
    )


def _object(plan: Plan, kind: str, name: str = "", *, template: str | None = None, **fields: object) -> Object:
    name = name or operators.name_of(plan.fleet)
    return plan.object(kind, name, None, template=template, labels=labels(plan), **fields)

"""What must be there before anything is applied: versions, kinds, namespace, rights, metrics and Secrets. Only reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shardctl.cluster.api import FORBIDDEN, Api, ClusterError, RefusedError, Resource
from shardctl.cluster.kubectl import AT_ONCE
from shardctl.cluster.manifests import Manifest, Name
from shardctl.fleet import operators
from shardctl.fleet.spec import Fleet
from shardctl.render.kinds import KINDS

VERBS = ("get", "list", "create", "patch")
LISTED = 3  # names in one sentence
# Who serves a group that isn't there: what to install.
_PROVIDERS: Mapping[str, str] = {
    "pubsub.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform, gcloud or api",
    "iam.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform, gcloud or api",
    "redis.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "memorystore.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "sql.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "cloudscheduler.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "logging.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "monitoring.cnrm.cloud.google.com": "install Config Connector, or set `provisioner` to terraform or gcloud",
    "keda.sh": "install KEDA 2.12 or newer, or set `autoscaling: hpa`",
    "external-secrets.io": "install the External Secrets Operator, or make the Secrets yourself (`secrets: {kind: kubernetes}`)",
    "networking.istio.io": "install Istio, or choose another `traffic`",
    "configuration.konghq.com": "install the Kong Ingress Controller, or choose another `traffic`",
    "gateway.networking.k8s.io": "install the Gateway API's CRDs, or choose another `traffic`",
    "monitoring.googleapis.com": "enable managed collection (`gcloud container clusters update CLUSTER "
    "--enable-managed-prometheus`), or choose another `monitoring`",
    "monitoring.coreos.com": "install the Prometheus Operator, or choose another `monitoring`",
}
_EXTERNAL_METRICS, _POD_METRICS = "external.metrics.k8s.io/v1beta1", "metrics.k8s.io/v1beta1"


@dataclass(frozen=True, slots=True)
class Requirements:
    """`missing` are sentences: what, where, the next step. `unknown` is what the caller has no right to look at."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def served(api: Api, manifests: Sequence[Manifest]) -> dict[str, Resource]:
    """The kinds that the server has, of those in the manifests and of all that a fleet may have had. Raises ClusterError."""
    versions = {kind.name: kind.api_version for kind in KINDS.values()}
    versions |= {manifest.id.kind: manifest.api_version for manifest in manifests}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinds") as threads:
        asked = tuple(dict.fromkeys(versions.values()))
        by_version = dict(zip(asked, threads.map(api.resources, asked), strict=True))
    return {kind: by_version[version][kind] for kind, version in versions.items() if kind in by_version[version]}


def check(api: Api, fleet: Fleet, manifests: Sequence[Manifest], resources: Mapping[str, Resource]) -> Requirements:
    """Raises UnreachableError, and RefusedError where the server refuses what anybody may ask."""
    missing = [*_kinds(manifests, resources), *_version(api.version(), manifests)]
    missing += _rights(api, fleet, manifests, resources)
    unknown: list[str] = []
    if (there := _namespace(api, fleet, manifests)) is not None:
        missing.append(there)
    elif not missing:
        missing, unknown = _secrets(api, fleet, manifests)
    missing += _metrics(api, manifests)
    return Requirements(tuple(missing), tuple(unknown))


def of_job(api: Api, fleet: Fleet, manifests: Sequence[Manifest]) -> list[str]:
    """What a Job's pod would wait for in vain, as sentences. Secrets that the caller may not read aren't looked at."""
    missing = [*_version(api.version(), manifests)]
    if (there := _namespace(api, fleet, manifests)) is not None:
        return [*missing, there]
    account = operators.name_of(fleet)
    resource = Resource("v1", "ServiceAccount", "serviceaccounts", namespaced=True)
    try:
        if api.get(resource, fleet.namespace, account) is None:
            missing.append(
                f"ServiceAccount {account} isn't in namespace {fleet.namespace}, and the Job runs as it: "
                "`shardctl apply` makes it."
            )
    except RefusedError as error:
        if error.code != FORBIDDEN:
            raise
    return [*missing, *_secrets(api, fleet, manifests)[0]]


def _kinds(manifests: Sequence[Manifest], resources: Mapping[str, Resource]) -> Iterator[str]:
    """One sentence a group and version that the server doesn't serve."""
    absent: dict[str, list[str]] = {}
    for manifest in manifests:
        if manifest.id.kind not in resources:
            absent.setdefault(manifest.api_version, []).append(manifest.id.kind)
    for version, kinds in absent.items():
        group = version.partition("/")[0]
        names = ", ".join(dict.fromkeys(kinds))
        way = _PROVIDERS.get(group, f"see what it serves: `kubectl api-resources --api-group={group}`")
        yield f"the cluster doesn't serve {names} ({version}): {way}."


def _version(version: tuple[int, int], manifests: Sequence[Manifest]) -> Iterator[str]:
    """What an older API server would refuse, or drop without a word."""
    for needed, what, kinds in (
        ((1, 37), "an HPA that scales to zero (autoscaling: hpa with min 0)", _asleep(manifests)),
        ((1, 30), "a wait before the stop (workload.pre_stop)", _waiting_to_stop(manifests)),
        ((1, 29), "the Cloud SQL Auth Proxy as a native sidecar (cloud_sql)", _with_sidecars(manifests)),
        ((1, 27), "a StatefulSet that says what becomes of its disks", _of_kind(manifests, "StatefulSet")),
    ):
        if kinds and version < needed:
            shown = ".".join(map(str, version))
            yield (
                f"{what} needs Kubernetes {'.'.join(map(str, needed))}, and the cluster has {shown}: {_listed(kinds)}. "
                "Update the cluster, or change the setting."
            )


def _asleep(manifests: Sequence[Manifest]) -> list[str]:
    return [
        str(manifest.id)
        for manifest in manifests
        if manifest.id.kind == "HorizontalPodAutoscaler" and manifest.body["spec"].get("minReplicas") == 0
    ]


def _waiting_to_stop(manifests: Sequence[Manifest]) -> list[str]:
    return [
        str(manifest.id)
        for manifest in manifests
        if any("sleep" in (container.get("lifecycle") or {}).get("preStop", {}) for container in _containers(manifest))
    ]


def _with_sidecars(manifests: Sequence[Manifest]) -> list[str]:
    return [str(manifest.id) for manifest in manifests if _pod(manifest).get("initContainers")]


def _of_kind(manifests: Sequence[Manifest], kind: str) -> list[str]:
    return [str(manifest.id) for manifest in manifests if manifest.id.kind == kind]


def _containers(manifest: Manifest) -> list[Mapping[str, Any]]:
    pod = _pod(manifest)
    return [*pod.get("initContainers", ()), *pod.get("containers", ())]


def _pod(manifest: Manifest) -> Mapping[str, Any]:
    spec = manifest.body.get("spec")
    pod = spec.get("template", {}).get("spec", {}) if isinstance(spec, dict) else {}
    return pod if isinstance(pod, dict) else {}


def _rights(api: Api, fleet: Fleet, manifests: Sequence[Manifest], resources: Mapping[str, Resource]) -> Iterator[str]:
    """One sentence a kind whose objects the caller may not read, make or change."""
    kinds = [kind for kind in dict.fromkeys(manifest.id.kind for manifest in manifests) if kind in resources]
    asked = [(kind, verb) for kind in kinds for verb in VERBS]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rights") as threads:
        answers = threads.map(lambda ask: api.allowed(ask[1], resources[ask[0]], fleet.namespace), asked)
        lacking: dict[str, list[str]] = {}
        for (kind, verb), allowed in zip(asked, answers, strict=True):
            if not allowed:
                lacking.setdefault(kind, []).append(verb)
    for kind, verbs in lacking.items():
        resource = resources[kind]
        where = f"in namespace {fleet.namespace}" if resource.namespaced else "in the cluster"
        yield (
            f"you may not {', '.join(verbs)} {resource.plural} {where}. Ask for a Role with these verbs; `kubectl auth "
            f"can-i {verbs[0]} {resource.plural}{f' -n {fleet.namespace}' if resource.namespaced else ''}` checks it, "
            "`kubectl auth whoami` says who you are."
        )


def _namespace(api: Api, fleet: Fleet, manifests: Sequence[Manifest]) -> str | None:
    """Why nothing can be put into the namespace. None where the caller may not read namespaces: the dry run shows it."""
    if any(manifest.id.kind == "Namespace" for manifest in manifests):
        return None
    try:
        live = api.get(Resource("v1", "Namespace", "namespaces", namespaced=False), "", fleet.namespace)
    except RefusedError as error:
        if error.code != FORBIDDEN:
            raise
        return None
    if live is None:
        return (
            f"namespace {fleet.namespace} doesn't exist: `kubectl create namespace {fleet.namespace}`, or "
            "`create_namespace: true` in the file, which also labels it for the restricted Pod Security Standard."
        )
    if (live.get("status") or {}).get("phase") == "Terminating":
        return f"namespace {fleet.namespace} is being deleted. Wait until it is gone: `kubectl get namespace {fleet.namespace}`."
    return None


def _metrics(api: Api, manifests: Sequence[Manifest]) -> Iterator[str]:
    """What the autoscalers read has to be served."""
    types = {
        metric["type"]
        for manifest in manifests
        if manifest.id.kind == "HorizontalPodAutoscaler"
        for metric in manifest.body["spec"].get("metrics", ())
    }
    if "External" in types and not _answers(api, _EXTERNAL_METRICS):
        yield (
            f"nothing serves external metrics ({_EXTERNAL_METRICS}), so no HorizontalPodAutoscaler would see a "
            "backlog. Install the Custom Metrics Stackdriver Adapter, or set `autoscaling: keda` or none."
        )
    if "Resource" in types and not _answers(api, _POD_METRICS):
        yield (
            f"nothing serves the pods' CPU ({_POD_METRICS}), so no HorizontalPodAutoscaler would see it. Install "
            "metrics-server, or see why it is down: `kubectl get apiservices`."
        )


def _answers(api: Api, api_version: str) -> bool:
    """An aggregated API that is registered and down answers 503."""
    try:
        return api.served(api_version)
    except ClusterError:
        return False


def _secrets(api: Api, fleet: Fleet, manifests: Sequence[Manifest]) -> tuple[list[str], list[str]]:
    """Secrets and keys that pods would wait for and that nothing rendered makes; and those that can't be looked at."""
    missing, unknown = [], []
    resource = Resource("v1", "Secret", "secrets", namespaced=True)
    first = _namespace_first(api, fleet, manifests)
    for name, keys in sorted(wanted_secrets(manifests).items()):
        try:
            live = api.get(resource, fleet.namespace, name)
        except RefusedError as error:
            if error.code != FORBIDDEN:
                raise
            unknown.append(name)
            continue
        if live is None:
            literals = " ".join(f"--from-literal={key}=…" for key in sorted(keys))
            missing.append(
                f"Secret {name} isn't in namespace {fleet.namespace}, and pods wait for it: {first}`kubectl create "
                f"secret generic {name} -n {fleet.namespace} {literals}`."
            )
        elif absent := sorted(keys - (live.get("data") or {}).keys()):
            missing.append(
                f"Secret {name} in namespace {fleet.namespace} has no key {', '.join(absent)}, and pods wait for it. "
                f"Add it: `kubectl edit secret {name} -n {fleet.namespace}`."
            )
    return missing, unknown


def _namespace_first(api: Api, fleet: Fleet, manifests: Sequence[Manifest]) -> str:
    """The command that makes a namespace which the file renders and which isn't there yet: no Secret can be made before it."""
    if not any(manifest.id.kind == "Namespace" for manifest in manifests):
        return ""
    if api.get(Resource("v1", "Namespace", "namespaces", namespaced=False), "", fleet.namespace) is not None:
        return ""
    return "`shardctl render --kind Namespace | kubectl apply --server-side -f -`, then "


def wanted_secrets(manifests: Sequence[Manifest]) -> dict[str, set[str]]:
    """The keys that pods need, by Secret, but for Secrets that an ExternalSecret makes. Pure."""
    made = {
        manifest.body["spec"].get("target", {}).get("name", manifest.id.name)
        for manifest in manifests
        if manifest.id.kind == "ExternalSecret"
    }
    wanted: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, key in _references(_pod(manifest)):
            wanted.setdefault(name, set()).update(key)
    return {name: keys for name, keys in wanted.items() if name not in made}


def _references(pod: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and not reference.get("optional"):
                yield reference["name"], {reference["key"]}
    for volume in pod.get("volumes", ()):
        for source in (volume, *volume.get("projected", {}).get("sources", ())):
            secret = source.get("secret")
            if secret and not secret.get("optional"):
                yield secret.get("secretName") or secret["name"], {item["key"] for item in secret.get("items", ())}


def may_delete(api: Api, fleet: Fleet, names: Sequence[Name], resources: Mapping[str, Resource]) -> list[str]:
    """A sentence for each kind of which something is to be deleted by a caller who may not."""
    return [
        f"you may not delete {resources[kind].plural} in namespace {fleet.namespace}, and the file no longer names "
        "some. Ask for the right, or leave them: --no-prune."
        for kind in dict.fromkeys(name.kind for name in names)
        if not api.allowed("delete", resources[kind], fleet.namespace)
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

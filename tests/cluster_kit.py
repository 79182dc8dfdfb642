"""A Kubernetes API server in memory, as far as a fleet needs one.

It knows server-side apply with field managers, dry runs, lists by label, access reviews, the kinds that a fleet renders, and
controllers that report. What it does was taken from Kubernetes' documentation of server-side apply, and its messages from a real
server's. It validates nothing but what a fleet may break: a StatefulSet's immutable fields, and an HPA that scales to zero.
`client` puts it behind httpx, `serve` behind a socket, `kubectl_of` behind a `kubectl proxy`.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import socketserver
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from shardctl.cluster import surplus
from shardctl.cluster.api import Api
from shardctl.cluster.changes import Preview
from shardctl.cluster.manifests import manifests
from shardctl.cluster.requirements import served, wanted_secrets
from shardctl.cluster.run import Run
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.render.kinds import CLUSTER_SCOPED, KINDS

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CONFIG_CONNECTOR = ("PubSubTopic", "PubSubSubscription", "IAMServiceAccount", "IAMPolicyMember", "CloudSchedulerJob")
SERVED = {
    "v1": {
        "namespaces": "Namespace",
        "secrets": "Secret",
        "pods": "Pod",
        "configmaps": "ConfigMap",
        "services": "Service",
    }
    | {"serviceaccounts": "ServiceAccount", "resourcequotas": "ResourceQuota", "events": "Event"},
    "batch/v1": {"jobs": "Job"},
    "external.metrics.k8s.io/v1beta1": {},
    "metrics.k8s.io/v1beta1": {"pods": "PodMetrics"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}
for _kind in KINDS.values():
    _plural = _kind.name.lower() + ("" if _kind.name.endswith("s") else "s")
    _plural = {
        "networkpolicys": "networkpolicies",
        "ingress": "ingresses",
        "kongupstreampolicys": "kongupstreampolicies",
    }.get(_plural, _plural)
    SERVED.setdefault(_kind.api_version, {}).setdefault(_plural, _kind.name)
KEYED = {  # lists that the server merges by a key; it takes any other as one value
    "containers": "name", "initContainers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath",
    "ports": "containerPort",
}  # fmt: skip
STATEFULSET_FORBIDDEN = (
    "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
    "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
)


class Killed(BaseException):
    """Stands for the end of the process that made the request, before the server took it."""


class RefusalError(Exception):
    def __init__(self, code, reason, message, causes=()):
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": {"causes": list(causes)},
        }  # fmt: skip


class Cluster:
    """Set what it is like.

    `minor` of its version, `served` kinds, `denied` (verb, plural) pairs, `stuck` objects that never become ready, `pods` to
    list, `down` for what a proxy says then; `left` is how many writes it takes before the caller is killed. `failing` are codes
    with which the next lists of Deployments fail, once there are some. `kubelet` hears of objects that are applied and deleted,
    and has the pods' logs.
    """

    def __init__(self, *namespaces, minor=36):
        self.minor = minor
        self.served = copy.deepcopy(SERVED)
        self.denied, self.stuck, self.pods = set(), set(), []
        self.down, self.left, self.kubelet, self.failing = "", None, None, []
        self.objects, self.managers = {}, {}
        self.writes = []
        self._numbers, self._lock = itertools.count(1), threading.RLock()
        for name in namespaces:
            self.put("v1", "namespaces", "", {"kind": "Namespace", "metadata": {"name": name}})

    # -- for tests -------------------------------------------------------------------------------------------------------

    def put(self, version, plural, namespace, body):
        """An object that was there before, owned by nobody."""
        body = {"apiVersion": version, "kind": self.served[version][plural], **copy.deepcopy(body)}
        body["metadata"] |= {"uid": f"u{next(self._numbers)}", "generation": 1} | (
            {"namespace": namespace} if namespace else {}
        )
        self.objects[version, plural, namespace, body["metadata"]["name"]] = body
        return body

    def copy(self):
        """Another cluster with the same in it."""
        other = Cluster(minor=self.minor)
        other.objects, other.managers = copy.deepcopy((self.objects, self.managers))
        other.writes = [*self.writes]
        return other

    def state(self):
        """What is in it, without what depends on when it came there."""
        return {
            key: {**body, "metadata": {**body["metadata"], "uid": "", "generation": 0}}
            for key, body in self.objects.items()
        }

    def secret(self, namespace, name, *keys):
        self.put("v1", "secrets", namespace, {"metadata": {"name": name}, "data": dict.fromkeys(keys, "c2VjcmV0")})

    def find(self, kind, name):
        bodies = [body for body in self.objects.values() if (body["kind"], body["metadata"]["name"]) == (kind, name)]
        return bodies[0] if bodies else None

    def names(self, *kinds):
        return sorted(
            f"{body['kind']}/{body['metadata']['name']}"
            for body in self.objects.values()
            if (body["kind"] in kinds if kinds else body["kind"] not in {"Namespace", "Secret"})
        )

    def set_by(self, manager, kind, name, path, value, subresource=""):
        """Another manager updates one field, as `kubectl set image` or an autoscaler does."""
        body = self.find(kind, name)
        place = body
        for step in path[:-1]:
            place = next(item for item in place if item["name"] == step) if isinstance(place, list) else place[step]
        place[path[-1]] = value
        body["metadata"]["generation"] += 1
        owners = self.managers.setdefault(body["metadata"]["uid"], {})
        for fields in owners.values():
            fields.discard(tuple(path))
        owners.setdefault((manager, subresource), set()).add(tuple(path))

    def without(self, *kinds):
        """As where those kinds' CRDs aren't installed."""
        for version, plurals in list(self.served.items()):
            self.served[version] = {plural: kind for plural, kind in plurals.items() if kind not in kinds}
            if plurals and not self.served[version]:
                del self.served[version]

    def client(self):
        def answer(request):
            code, body = self.handle(request.method, str(request.url), request.content)
            return httpx.Response(code, **({"json": body} if isinstance(body, dict) else {"text": body}))

        return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://localhost")

    # -- the server ------------------------------------------------------------------------------------------------------

    def handle(self, method, url, content=b""):
        """The status and the body: JSON, or text where the answer is a proxy's."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            if self.down:
                return 500, self.down
            try:
                return 200, self._answer(method, parts.path.rstrip("/"), query, content)
            except RefusalError as refusal:
                return refusal.status["code"], refusal.status

    def _answer(self, method, path, query, content):
        if path == "/version":
            return {"major": "1", "minor": f"{self.minor}+", "gitVersion": f"v1.{self.minor}.2-gke.1"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [version.split("/") for version in self.served if "/" in version]
            versions = [{"groupVersion": "/".join(group), "version": group[1]} for group in groups]
            return {
                "kind": "APIGroupList", "apiVersion": "v1",
                "groups": [
                    {"name": group[0], "versions": [version], "preferredVersion": version}
                    for group, version in zip(groups, versions, strict=True)
                ],
            }  # fmt: skip
        steps = path.strip("/").split("/")
        version, steps = ("v1", steps[2:]) if steps[0] == "api" else ("/".join(steps[1:3]), steps[3:])
        if version not in self.served:
            raise RefusalError(404, "NotFound", "the server could not find the requested resource")
        if not steps:
            return {"kind": "APIResourceList", "groupVersion": version, "resources": self._resources(version)}
        if steps[0] == "selfsubjectaccessreviews":
            asked = json.loads(content)["spec"]["resourceAttributes"]
            what = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return {"status": {"allowed": (asked["verb"], what) not in self.denied}}
        namespace, steps = (steps[1], steps[2:]) if steps[0] == "namespaces" and len(steps) > 2 else ("", steps)
        plural, name = steps[0], steps[1] if len(steps) > 1 else ""
        if plural not in self.served[version]:
            raise RefusalError(404, "NotFound", "the server could not find the requested resource")
        key = (version, plural, namespace, name)
        if steps[2:] == ["log"]:
            self._read(key, query)
            return self.kubelet.log(name, query.get("sinceTime", ""))
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        if (verb, plural) == ("list", "deployments") and self.failing and self.names("Deployment"):
            raise RefusalError(self.failing.pop(0), "InternalError", "etcdserver: leader changed")
        if (verb, plural) in self.denied:
            group = version.rpartition("/")[0]
            raise RefusalError(
                403, "Forbidden",
                f'{plural}{"." * bool(group)}{group} "{name}" is forbidden: User "dev" cannot {verb} resource "{plural}" in '
                f'API group "{group}" in the namespace "{namespace}"',
            )  # fmt: skip
        if method == "GET":
            return self._read(key, query) if name else self._list(key, query)
        dry = query.get("dryRun") == "All"
        if not dry:
            self._count(f"{verb} {self.served[version][plural]}/{name}")
        return self._apply(key, query, content, dry) if method == "PATCH" else self._delete(key, content, dry)

    def _resources(self, version):
        return [
            {
                "name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": kind not in CLUSTER_SCOPED,
                "verbs": ["get", "list", "patch", "create", "delete"],
            }
            for plural, kind in self.served[version].items()
        ]  # fmt: skip

    def _count(self, what):
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1
        self.writes.append(what)

    def _read(self, key, query):
        if key not in self.objects:
            raise RefusalError(404, "NotFound", f'{key[1]} "{key[3]}" not found')
        return self._shown(self.objects[key])

    def _list(self, key, query):
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        bodies = [
            body
            for (version, plural, namespace, _), body in self.objects.items()
            if (version, plural) == key[:2] and namespace == key[2]
        ]
        bodies += self.pods if key[1] == "pods" else []
        items = [
            {name: value for name, value in self._shown(body).items() if name not in {"kind", "apiVersion"}}
            for body in bodies
            if wanted.items() <= body["metadata"].get("labels", {}).items()
        ]
        return {"kind": f"{self.served[key[0]][key[1]]}List", "apiVersion": key[0], "metadata": {}, "items": items}

    def _shown(self, body):
        """With what its controller reports, and who owns which field."""
        shown = copy.deepcopy(body)
        metadata = shown["metadata"]
        metadata["managedFields"] = [
            {
                "manager": manager, "operation": "Update" if subresource or manager != "kubectl" else "Apply",
                "fieldsType": "FieldsV1", "fieldsV1": _nested(fields),
            }
            for (manager, subresource), fields in self.managers.get(metadata.get("uid"), {}).items()
        ]  # fmt: skip
        if shown.get("kind") in {"Deployment", "StatefulSet"}:
            shown["status"] = self._rollout(shown)
        elif shown.get("kind") in {*CONFIG_CONNECTOR, "ExternalSecret"}:
            ready = f"{shown['kind']}/{metadata['name']}" not in self.stuck
            condition = {"type": "Ready", "status": "True" if ready else "False"}
            condition |= (
                {} if ready else {"reason": "UpdateFailed", "message": "the service account lacks pubsub.admin"}
            )
            shown["status"] = {"observedGeneration": metadata["generation"], "conditions": [condition]}
        return shown

    def _rollout(self, body):
        replicas, generation = body["spec"].get("replicas", 1), body["metadata"]["generation"]
        ready = 0 if f"{body['kind']}/{body['metadata']['name']}" in self.stuck else replicas
        return {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": ready,
            "availableReplicas": ready, "currentRevision": "r1", "updateRevision": "r1",
        }  # fmt: skip

    def _apply(self, key, query, content, dry):
        namespace = key[2]
        wanted = json.loads(content) if content[:1] == b"{" else yaml.load(content, LOADER)
        if namespace and ("v1", "namespaces", "", namespace) not in self.objects:
            raise RefusalError(404, "NotFound", f'namespaces "{namespace}" not found')
        manager, force = query["fieldManager"], query.get("force") == "true"
        live = self.objects.get(key)
        uid = live["metadata"]["uid"] if live else f"u{next(self._numbers)}"
        owners = copy.deepcopy(self.managers.get(uid, {}))
        after = copy.deepcopy(live) if live else {"metadata": {"generation": 0, "uid": uid}}
        fields = dict(_leaves(wanted))
        if not force and (causes := _conflicts(live, owners, manager, fields)):
            listed = "\n- ".join(cause["field"] for cause in causes)
            raise RefusalError(409, "Conflict", f"Apply failed with {len(causes)} conflicts:\n- {listed}", causes)
        others = {path for owner, paths in owners.items() if owner[0] != manager for path in paths}
        for path in owners.get((manager, ""), set()) - fields.keys() - others:
            _remove(after, path)
        for path, value in fields.items():
            _set(after, path, value)
            for owner, paths in owners.items():
                if owner[0] != manager and live is not None and _get(live, path) != value:
                    paths.discard(path)
        owners[manager, ""] = set(fields)
        if after["kind"] in {"Deployment", "StatefulSet"}:
            after["spec"].setdefault("replicas", 1)
        self._validate(key, live, after)
        if live is None or {**live, "metadata": None} != {**after, "metadata": None}:
            after["metadata"]["generation"] += 1
        if not dry:
            self.objects[key], self.managers[uid] = after, owners
            if self.kubelet:
                self.kubelet.applied(after)
        return self._shown(after)

    def _validate(self, key, live, after):
        kind, name = after["kind"], after["metadata"]["name"]
        if kind == "HorizontalPodAutoscaler" and after["spec"].get("minReplicas") == 0 and self.minor < 37:
            raise RefusalError(
                422, "Invalid", f'{kind}.autoscaling "{name}" is invalid: spec.minReplicas: Invalid value: 0'
            )
        if kind == "StatefulSet" and live is not None:
            for field in ("volumeClaimTemplates", "selector", "serviceName"):
                if live["spec"].get(field) != after["spec"].get(field):
                    raise RefusalError(422, "Invalid", f'StatefulSet.apps "{name}" is invalid: {STATEFULSET_FORBIDDEN}')

    def _delete(self, key, content, dry):
        if key not in self.objects:
            raise RefusalError(404, "NotFound", f'{key[1]} "{key[3]}" not found')
        uid = json.loads(content or b"{}").get("preconditions", {}).get("uid", "")
        if uid not in {"", self.objects[key]["metadata"]["uid"]}:
            raise RefusalError(409, "Conflict", "Precondition failed: UID in precondition doesn't match")
        if not dry:
            gone = self.objects.pop(key)
            for other, body in list(self.objects.items()):
                owners = {owner["uid"] for owner in body["metadata"].get("ownerReferences", ())}
                if (
                    gone["metadata"]["uid"] in owners and other[1] != "pods"
                ):  # which are there until their processes end
                    del self.objects[other]
            if self.kubelet:
                self.kubelet.deleted(gone)
        return {"kind": "Status", "status": "Success"}


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def serve(cluster, address=("127.0.0.1", 0)):
    """An HTTP server that answers for the cluster, on a unix socket where the address is a path; the caller runs and ends it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: else each answer waits for the client's delayed ack

        def answer(self):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = cluster.handle(self.command, self.path, content)
            if not isinstance(body, (dict, str)):
                self.stream(body)
                return
            text = json.dumps(body).encode() if isinstance(body, dict) else body.encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "text/plain")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def stream(self, lines):
            """A log, until it ends or the reader leaves."""
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):
                for line in lines:
                    self.wfile.write(f"{line}\n".encode())
                    self.wfile.flush()

        do_GET = do_PATCH = do_POST = do_DELETE = answer  # noqa: N815 - as the base class calls them

        def log_message(self, *_):
            pass

    return (UnixServer if isinstance(address, str) else ThreadingHTTPServer)(address, Handler)


KUBECTL = """#!/bin/sh
[ "$1" = proxy ] || exit 64
for argument; do
  case $argument in
    --unix-socket=*) ln -s "$FAKE_KUBECTL/api" "${argument#*=}" ;;
    --context=nope) echo 'error: context "nope" does not exist' >&2; exit 1 ;;
  esac
done
printf '%s\\n' "$*" >> "$FAKE_KUBECTL/calls"
echo Starting to serve
exec sleep 600
"""


@contextmanager
def kubectl_of(cluster, folder, monkeypatch):
    """A `kubectl` on the PATH whose proxy leads to this cluster."""
    program = folder / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBECTL", str(folder))
    with serve(cluster, str(folder / "api")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


# -- fields: a path is a tuple of names, and of keys inside the lists that are merged -------------------------------------


def _leaves(value, path=()):
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if path == () and name in {"apiVersion", "kind"}:
                yield (name,), inner
            elif path == ("metadata",) and name in {"name", "namespace"}:
                yield (*path, name), inner
            else:
                yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and path[-1] in KEYED and all(KEYED[path[-1]] in item for item in value):
        for item in value:
            yield from _leaves(item, (*path, item.get(KEYED[path[-1]])))
    else:
        yield path, value


def _inside(place, path):
    """Each step with the container it leads into, made where it is missing."""
    for number, step in enumerate(path[:-1]):
        if isinstance(place, list):
            key = KEYED[path[number - 1]]
            item = next((item for item in place if item.get(key) == step), None)
            if item is None:
                item = {key: step}
                place.append(item)
            place = item
        else:
            place = place.setdefault(step, [] if step in KEYED and len(path) > number + 2 else {})
    return place


def _set(body, path, value):
    _inside(body, path)[path[-1]] = value


def _get(body, path):
    place = body
    for number, step in enumerate(path):
        if isinstance(place, list):
            place = next((item for item in place if item.get(KEYED[path[number - 1]]) == step), None)
        else:
            place = place.get(step) if isinstance(place, dict) else None
        if place is None:
            return None
    return place


def _remove(body, path):
    place = _get(body, path[:-1])
    if isinstance(place, dict):
        place.pop(path[-1], None)
        if not place and len(path) > 2:
            _remove(body, path[:-1])
    elif isinstance(place, list):
        key = KEYED[path[-2]]
        place[:] = [item for item in place if item.get(key) != path[-1]]


def _conflicts(live, owners, manager, fields):
    causes = []
    for path, value in fields.items():
        if live is None or _get(live, path) == value:
            continue
        for (owner, subresource), paths in owners.items():
            if owner != manager and path in paths:
                how = f' with subresource "{subresource}"' if subresource else ""
                causes.append({
                    "reason": "FieldManagerConflict", "field": "." + ".".join(map(str, path)),
                    "message": f'conflict with "{owner}"{how} using apps/v1',
                })  # fmt: skip
    return causes


def _nested(paths):
    nested = {}
    for path in paths:
        place = nested
        for step in path:
            place = place.setdefault(f"f:{step}", {})
    return nested


# -- a fleet in it ---------------------------------------------------------------------------------------------------------


FLEET = """\
fleet: orders
project: my-project
project_number: "123456789012"
namespace: writers
image: example.com/consumer:1.0.0
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text}}
"""
SHARDS = """\
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""


def fleet_of(more="", shards=SHARDS):
    return fleet_from(parse(f"{FLEET}{more}\n{shards}"))


def cluster_for(fleet, **settings):
    """With the namespace and the Secrets that the fleet needs."""
    cluster = Cluster(fleet.namespace, **settings)
    for name, keys in wanted_secrets(manifests(fleet)).items():
        cluster.secret(fleet.namespace, name, *keys)
    return cluster


class Recorder:
    """What a run reports. Its waits take no time, and end after `looks`."""

    def __init__(self, looks=3):
        self.done_lines, self.waits_lines, self.looks = [], [], looks

    def done(self, what):
        self.done_lines.append(what)

    def waits(self, what, reasons, seconds):
        self.waits_lines.append((what, tuple(reasons)))

    def until(self, reasons, tell):
        for number in range(self.looks):
            if not (why := reasons()):
                return True
            tell(why, float(number))
        return False


def apply(cluster, fleet, *, force=False, backlogs=None, recorder=None):
    """What `shardctl apply --yes` does, on a cluster in this process; the changes and the deletions that it made."""
    recorder, api, rendered = recorder or Recorder(), Api(cluster.client()), manifests(fleet)
    resources = served(api, rendered)
    changes = Preview(api, resources, force=force).of(rendered)
    assert [str(change) for change in changes if change.blocked] == []
    surplus_read = surplus.find(api, fleet, rendered, resources)
    deletions = surplus.deletions(fleet, surplus_read.surplus, backlogs or {})
    Run(api, fleet, resources, recorder, recorder, force=force).to_its_end(changes, deletions)
    return changes, deletions


def preview(cluster, fleet, *, force=True):
    api, rendered = Api(cluster.client()), manifests(fleet)
    return Preview(api, served(api, rendered), force=force).of(rendered)

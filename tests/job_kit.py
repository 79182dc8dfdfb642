"""Jobs in the API server of `cluster_kit`, whose pods are processes of this machine.

It does what Kubernetes' Job controller and a kubelet do, as far as a command needs them: each try is a pod with a disk of its
own, the ConfigMap mounted, values of Secrets in its environment, and a way to the API, which lets it do what its Role says.
The Job's policy decides by exit code whether there is another try. The image is this machine's Python.
"""

import base64
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count

import trustme
from cluster_kit import RefusalError, serve
from patience import PATIENCE_SECONDS

CONTAINER = "shardctl"
KEPT_OF_OURS = ("PATH", "HOME", "PUBSUB_EMULATOR_HOST", "COVERAGE_PROCESS_START")


class PodsView:
    """The API as a pod reaches it: by its account's Role alone."""

    def __init__(self, cluster, role):
        self._cluster, self._role = cluster, role
        self.requests = []

    def handle(self, method, url, content=b""):
        self.requests.append((method, url.partition("?")[0]))
        verb = {"GET": "get", "PATCH": "patch"}.get(method, method.lower())
        *_, plural, name = url.partition("?")[0].split("/")
        role = self._cluster.find("Role", self._role) or {"rules": []}
        for rule in role["rules"]:
            if verb in rule["verbs"] and plural in rule["resources"] and name in rule["resourceNames"]:
                return self._cluster.handle(method, url, content)
        return 403, RefusalError(
            403, "Forbidden", f'{plural} "{name}" is forbidden: the account may not {verb} it'
        ).status


class Kubelet:
    """`waiting` is what every new pod reports instead of running, or its condition PodScheduled where it has no container.

    `before` is called with each pod's process when it has started, `seen` with each line of its log. `codes` are the exit codes.
    """

    def __init__(self, cluster, folder, authority, port):
        self._cluster, self._folder, self._port = cluster, folder, port
        self._account = folder / "account"
        self._account.mkdir()
        authority.cert_pem.write_to_path(str(self._account / "ca.crt"))
        (self._account / "token").write_text("let-me-in")
        self._threads, self._processes, self._logs = [], {}, {}
        self._numbers, self._ended = count(1), {}
        self.waiting, self.unschedulable, self.before = {}, "", lambda process: None
        self.seen = lambda process, line: None
        self.commands, self.environments, self.codes = [], [], []

    # -- what the API server calls -----------------------------------------------------------------------------------------

    def applied(self, body):
        if body["kind"] == "Job" and "status" not in body:
            body["status"] = {}
            body["metadata"]["creationTimestamp"] = _now()
            self._threads.append(threading.Thread(target=self._run, args=(body,)))
            self._threads[-1].start()

    def deleted(self, body):
        if body["kind"] == "Job":
            for (uid, _), process in list(self._processes.items()):
                if uid == body["metadata"]["uid"]:
                    process.send_signal(signal.SIGTERM)

    def log(self, pod, since):
        """The lines with their times, from that moment on, until the container has ended."""
        number = 0
        while True:
            ended = self._ended[pod].is_set()
            lines = self._logs[pod]
            for moment, line in lines[number:]:
                if moment >= since:
                    yield f"{moment} {line}"
            number = len(lines) if lines else 0
            if ended:
                return
            self._ended[pod].wait(0.02)

    def close(self):
        for process in self._processes.values():
            process.kill()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    # -- a Job ---------------------------------------------------------------------------------------------------------------

    def _run(self, job):
        spec, failures = job["spec"], 0
        while self._lives(job):
            pod = self._pod(job)
            if self.waiting or self.unschedulable:
                self._hold(pod)
                return None
            code = self._container(job, pod)
            if code == 0:
                return self._conclude(job, "Complete", "Completed", "")
            if self._lives(job) and code in _decided(spec):
                return self._conclude(
                    job, "Failed", "PodFailurePolicy", f"Container {CONTAINER} failed with exit code {code}"
                )
            failures += 1
            if failures > spec["backoffLimit"]:
                return self._conclude(
                    job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
                )
        return None

    def _lives(self, job):
        return self._cluster.objects.get(("batch/v1", "jobs", _namespace(job), _name(job))) is job

    def _conclude(self, job, condition, reason, message):
        job["status"]["conditions"] = [{"type": condition, "status": "True", "reason": reason, "message": message}]

    def _pod(self, job):
        name = f"{_name(job)}-{next(self._numbers)}"
        self._logs[name], self._ended[name] = [], threading.Event()
        labels = {**job["spec"]["template"]["metadata"]["labels"], "batch.kubernetes.io/job-name": _name(job)}
        owner = [{"kind": "Job", "name": _name(job), "uid": job["metadata"]["uid"]}]
        metadata = {"name": name, "labels": labels, "creationTimestamp": _now(), "ownerReferences": owner}
        return self._cluster.put("v1", "pods", _namespace(job), {"metadata": metadata, "status": {}})

    def _hold(self, pod):
        if self.unschedulable:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": self.unschedulable,
            }
            pod["status"] = {"phase": "Pending", "conditions": [condition]}
        else:
            pod["status"] = {"containerStatuses": [{"name": CONTAINER, "state": {"waiting": self.waiting}}]}
        self._ended[_name(pod)].set()

    # -- its container -------------------------------------------------------------------------------------------------------

    def _container(self, job, pod):
        container = job["spec"]["template"]["spec"]["containers"][0]
        mounted, disk = self._folder / f"{_name(pod)}-files", self._folder / f"{_name(pod)}-fleet"
        self._mount(job, mounted)
        disk.mkdir()
        places = {"/etc/shardctl": str(mounted), "/fleet": str(disk)}
        options = [places.get(argument, argument) for argument in container["args"]]
        if any(volume["name"] == "kubernetes" for volume in job["spec"]["template"]["spec"]["volumes"]):
            options = ["--account", str(self._account), *options]
        command = [sys.executable, *container["command"][1:], *options]
        environment = {name: os.environ[name] for name in KEPT_OF_OURS if name in os.environ}
        environment |= dict(self._environment(job, container))
        self.commands.append(command)
        self.environments.append(environment)
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._processes[job["metadata"]["uid"], _name(pod)] = process
        self._state(pod, {"running": {"startedAt": _now()}})
        self.before(process)
        for line in process.stdout:
            self._logs[_name(pod)].append((_now(), line.rstrip("\n")))
            self.seen(process, line)
        code = process.wait()
        code = code if code >= 0 else 128 - code
        self.codes.append(code)
        self._state(pod, {"terminated": {"exitCode": code, "reason": "OOMKilled" if code == 137 else "Error"}})
        self._ended[_name(pod)].set()
        return code

    def _mount(self, job, folder):
        """As a kubelet mounts a ConfigMap: links to the files of a folder that it can swap."""
        volume = next(v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "files")
        key = ("v1", "configmaps", _namespace(job), volume["configMap"]["name"])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while key not in self._cluster.objects and time.monotonic() < deadline:
            time.sleep(0.02)
        (folder / "..data").mkdir(parents=True)
        for name, text in self._cluster.objects[key].get("data", {}).items():
            (folder / "..data" / name).write_text(text)
            (folder / name).symlink_to(f"..data/{name}")

    def _environment(self, job, container):
        yield "KUBERNETES_SERVICE_HOST", "127.0.0.1"
        yield "KUBERNETES_SERVICE_PORT", str(self._port)
        (self._account / "namespace").write_text(_namespace(job))
        for variable in container.get("env", ()):
            if "value" in variable:
                yield variable["name"], variable["value"]
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                data = self._cluster.objects["v1", "secrets", _namespace(job), reference["name"]]["data"]
                yield variable["name"], base64.b64decode(data[reference["key"]]).decode()

    def _state(self, pod, state):
        pod["status"] = {"containerStatuses": [{"name": CONTAINER, "state": state}]}


def _decided(spec):
    rules = spec.get("podFailurePolicy", {}).get("rules", ())
    return {code for rule in rules if rule["action"] == "FailJob" for code in rule["onExitCodes"]["values"]}


_moments = count()
_BEGAN = datetime.now(UTC)


def _now():
    """Never the same twice, and in order, as the moments of a log's lines are."""
    moment = _BEGAN + timedelta(seconds=next(_moments))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _name(body):
    return body["metadata"]["name"]


def _namespace(body):
    return body["metadata"]["namespace"]


@contextmanager
def kubelet_of(cluster, folder, role):
    """Runs the Jobs of this cluster. Its pods reach the API over TLS, by the Role of that name."""
    authority = trustme.CA()
    view = PodsView(cluster, role)
    with serve(view) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        cluster.kubelet = kubelet = Kubelet(cluster, folder, authority, server.server_port)
        kubelet.view = view
        try:
            yield kubelet
        finally:
            cluster.kubelet = None
            kubelet.close()
            server.shutdown()
            thread.join()


def database_secret(cluster, namespace, name, url):
    data = {"url": base64.b64encode(url.encode()).decode()}
    cluster.put("v1", "secrets", namespace, {"metadata": {"name": name}, "data": data})

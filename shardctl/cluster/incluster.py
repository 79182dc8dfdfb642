"""Files that a Job keeps in a ConfigMap, and the way to the cluster from inside its pod: by the pod's own account."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from shardctl.cluster.api import Api, ClusterError, Resource
from shardctl.cluster.manifests import Manifest, Name
from shardctl.render.jobs import SENT, digest_of

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps", namespaced=True)
FILES_MANAGER = "shardctl-job"  # owns the files in a ConfigMap, so that applying the fleet leaves them
TIMEOUT_SECONDS = 30.0


class KeptError(ClusterError):
    """The files that commands change can't be kept, or can't be taken over."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The files that a ConfigMap keeps, by name. `sent` is the digest of those that the last Job was given."""

    files: Mapping[str, str]
    sent: str

    @property
    def changed(self) -> bool:
        """Whether a Job has changed them since, and nobody has taken them over."""
        return bool(self.files) and digest_of(self.files) != self.sent


class NoAccountError(ClusterError):
    """There is no pod around this process, or none with a token."""


@contextmanager
def connected(environment: Mapping[str, str], account: Path) -> Iterator[tuple[Api, str]]:
    """The cluster's API, and the pod's namespace. Raises NoAccountError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        namespace = (account / "namespace").read_text().strip()
        trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise NoAccountError(f"{account}: the pod's account can't be read: {error}.") from error
    if not host:
        raise NoAccountError("KUBERNETES_SERVICE_HOST isn't set, so this process runs in no pod.")
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    client = httpx.Client(
        base_url=url, verify=trusted, trust_env=False, timeout=TIMEOUT_SECONDS, auth=_Token(account / "token")
    )
    with client:
        yield Api(client), namespace


class _Token(httpx.Auth):
    """Reads the token for each request, since the kubelet replaces it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {self._path.read_text().strip()}"
        yield request


def read_files(api: Api, namespace: str, name: str) -> Kept:
    """Raises KeptError where there is no such ConfigMap; ClusterError."""
    live = api.get(CONFIG_MAP, namespace, name)
    if live is None:
        raise KeptError(
            f"ConfigMap {name} isn't in namespace {namespace}, and it keeps the files of commands that change them: "
            "`shardctl apply` makes it, with `operator` in the file."
        )
    return Kept(live.get("data") or {}, (live["metadata"].get("annotations") or {}).get(SENT, ""))


def write_files(api: Api, namespace: str, name: str, files: Mapping[str, str], sent: str) -> None:
    """Make these the files that a ConfigMap holds. Raises ClusterError."""
    metadata = {"name": name, "namespace": namespace, "annotations": {SENT: sent}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(files)}
    manifest = Manifest(Name("ConfigMap", name, namespace, ""), "v1", body)
    api.apply(CONFIG_MAP, manifest, force=True, manager=FILES_MANAGER)

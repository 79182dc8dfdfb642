"""The lease as a Lease of coordination.k8s.io/v1, with client-go's semantics: optimistic concurrency, observed times, giving up.

Two candidates may write at the API server at the same time: each names the version that it has read, and the server accepts only
the first of two writes.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from consumer.leader.leadership import LeaseError
from consumer.leader.record import Observed, Record
from shardctl.errors import UsageError

MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONFLICT_TRIES = 2  # if another candidate was first, read what it wrote, and perhaps write after all


class Account:
    """The pod's own account: its token is read each time, since the kubelet replaces it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def namespace(self) -> str:
        return self._read("namespace")

    @property
    def authorities(self) -> Path:
        return self._folder / "ca.crt"

    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._read('token')}"}

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise LeaseError(
                f"{self._folder / name}: {error.strerror}. A rendered pod has its account's token mounted."
            ) from error


def client_of(environment: Mapping[str, str], account: Account) -> httpx.AsyncClient:
    """A client of the cluster that this pod runs in. Raises UsageError where it runs in none."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UsageError(
            "leader: kubernetes needs a pod of a cluster, and KUBERNETES_SERVICE_HOST isn't set. Elsewhere use leader: redis."
        )
    try:
        trusted = ssl.create_default_context(cafile=str(account.authorities))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{account.authorities}: the cluster's certificate authority can't be read: {error}"
        ) from error
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return httpx.AsyncClient(base_url=url, verify=trusted, trust_env=False, follow_redirects=False)


class KubernetesLease:
    """One Lease, and one candidate for it. The caller bounds each call's time."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        account: Account,
        name: str,
        identity: str,
        duration_seconds: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._client, self._account, self._name, self._duration = client, account, name, duration_seconds
        self._clock = clock
        self._observed = Observed()
        self._ours: Mapping[str, Any] | None = None  # the object as we wrote it last: most renewals need no reading

    def __str__(self) -> str:
        return f"Lease {self._name}"

    async def hold(self) -> str:
        """Take the lease if it is free or silent, or renew it; who holds it now. Raises LeaseError."""
        holder = ""
        for _ in range(CONFLICT_TRIES):
            lease = self._ours or await self._read()
            if lease is None:
                written = await self._write("POST", self._collection(), self._new())
            else:
                record = _record(lease)
                self._observed.see(record, self._clock())
                holder = record.holder
                if holder != self.identity and self._observed.counts(self._clock()):
                    return holder
                written = await self._write("PUT", self._object(), self._next(lease, record))
            self._ours = written
            if written is not None:
                self._observed.see(_record(written), self._clock())
                return self.identity
        return holder  # another candidate is writing it at this moment

    async def release(self) -> None:
        """Free the lease, if it is ours. Raises LeaseError: then it is free when its time is over."""
        lease = await self._read()
        self._ours = None
        if lease is None or _record(lease).holder != self.identity:
            return
        await self._write("PUT", self._object(), {**lease, "spec": _record(lease).given_up(datetime.now(UTC)).spec()})

    async def close(self) -> None:
        await self._client.aclose()

    def _new(self) -> Mapping[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._account.namespace},
            "spec": Record.first(self.identity, self._duration, datetime.now(UTC)).spec(),
        }

    def _next(self, lease: Mapping[str, Any], record: Record) -> Mapping[str, Any]:
        """The object to write. It keeps the resourceVersion that was read: if that isn't the latest, the server refuses it."""
        spec = record.taken_by(self.identity, self._duration, datetime.now(UTC)).spec()
        return {**lease, "spec": {**(lease.get("spec") or {}), **spec}}

    async def _read(self) -> Mapping[str, Any] | None:
        answer = await self._ask("GET", self._object())
        return None if answer.status_code == httpx.codes.NOT_FOUND else self._object_of(answer)

    async def _write(self, method: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The object as the server has it now; None if another candidate wrote first."""
        answer = await self._ask(method, path, body)
        if answer.status_code in (httpx.codes.CONFLICT, httpx.codes.NOT_FOUND):
            return None
        return self._object_of(answer)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            return await self._client.request(method, path, json=body, headers=self._account.header(), timeout=None)
        except httpx.HTTPError as error:
            self._ours = None  # whether it was written, only the server knows
            raise LeaseError(f"{self}: the Kubernetes API doesn't answer: {error or type(error).__name__}") from error

    def _object_of(self, answer: httpx.Response) -> Mapping[str, Any]:
        if not answer.is_success:
            self._ours = None
            raise LeaseError(
                f"{self}: the Kubernetes API says {answer.status_code}: {_message(answer)}{self._help(answer)}"
            )
        try:
            lease = answer.json()
            _record(lease)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LeaseError(f"{self}: the Kubernetes API's answer isn't a Lease") from error
        return dict(lease)

    def _help(self, answer: httpx.Response) -> str:
        if answer.status_code != httpx.codes.FORBIDDEN:
            return ""
        return (
            f". The pod's account needs a Role with the rule: apiGroups [coordination.k8s.io], resources [leases], verbs "
            f"[get, update] for {self._name} and [create]; `shardctl render --kind Role,RoleBinding` gives it"
        )

    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._account.namespace}/leases"

    def _object(self) -> str:
        return f"{self._collection()}/{self._name}"


def _record(lease: Mapping[str, Any]) -> Record:
    return Record.of_spec(lease.get("spec") or {})


def _message(answer: httpx.Response) -> str:
    """The message of a Status object, or the beginning of any other answer."""
    try:
        return str(answer.json()["message"])[:300]
    except (ValueError, TypeError, KeyError):
        return answer.text[:100]

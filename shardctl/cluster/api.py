"""The Kubernetes API: what is read and changed in a cluster, as plain HTTP over a connection that somebody else authenticates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from shardctl.cluster.manifests import Manifest, Name
from shardctl.errors import ShardctlError
from shardctl.render.kinds import group_of

# kubectl's own for `apply --server-side`: so `shardctl render | kubectl apply --server-side -f -` and `shardctl apply` own the
# same fields, whichever a fleet was applied with before.
FIELD_MANAGER = "kubectl"
PAGE_OBJECTS = 500
LOG_TIMEOUT = httpx.Timeout(60.0, read=20.0)  # a quiet command looks like a connection that is gone
MAX_SHOWN_CHARACTERS = 600
CONFLICT, FORBIDDEN, NOT_FOUND, TOO_MANY, FAILED = 409, 403, 404, 429, 500


class ClusterError(ShardctlError):
    """The cluster can't be asked, or has refused."""


class UnreachableError(ClusterError):
    """No answer came, or none of an API server."""


class RefusedError(ClusterError):
    """The API server's own refusal: `code` as in HTTP, `fields` that other managers own where it is a conflict."""

    def __init__(self, code: int, message: str, fields: Mapping[str, str]) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields

    @property
    def conflict(self) -> bool:
        return self.code == CONFLICT and bool(self.fields)


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str, name: str = "") -> str:
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        inside = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{root}{inside}/{self.plural}" + (f"/{name}" if name else "")


class Api:
    """Calls of an API server. Each raises UnreachableError, or RefusedError with what the server says.

    Of a read that the server says it can't answer now, the former.

    The client may be used by several threads, and so may this.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def version(self) -> tuple[int, int]:
        """Major and minor. Raises UnreachableError where the answer is no API server's."""
        body = self._call("GET", "/version")
        try:
            return int(body["major"]), int("".join(digit for digit in body["minor"] if digit.isdigit()))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreachableError(
                _no_answer(f"/version has no Kubernetes version in it: {_short(str(body))}")
            ) from error

    def resources(self, api_version: str) -> dict[str, Resource]:
        """By kind; empty where that version isn't served."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        body = self._call("GET", root, missing_is_none=True)
        return {
            entry["kind"]: Resource(api_version, entry["kind"], entry["name"], entry["namespaced"])
            for entry in (body or {}).get("resources", ())
            if "/" not in entry["name"]  # else a subresource, such as deployments/scale
        }

    def served(self, api_version: str) -> bool:
        """Whether a group answers, its kinds or not: a metrics API lists none."""
        return self._call("GET", f"/apis/{api_version}", missing_is_none=True) is not None

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        live: dict[str, Any] | None = self._call("GET", resource.path(namespace, name), missing_is_none=True)
        return live

    def objects(self, resource: Resource, namespace: str, selector: str) -> Iterator[dict[str, Any]]:
        """Those with the labels. What is listed lacks kind and apiVersion at the server, and has them here."""
        parameters = {"labelSelector": selector, "limit": str(PAGE_OBJECTS)}
        while True:
            page = self._call("GET", resource.path(namespace), parameters)
            for entry in page.get("items") or ():
                yield {"apiVersion": resource.api_version, "kind": resource.kind, **entry}
            more = page["metadata"].get("continue")
            if not more:
                return
            parameters["continue"] = more

    def apply(
        self,
        resource: Resource,
        manifest: Manifest,
        *,
        force: bool = False,
        dry_run: bool = False,
        manager: str = FIELD_MANAGER,
    ) -> dict[str, Any]:
        """Apply on the server's side; what the object is then. With `force` fields that others own are taken over."""
        # Strict, as kubectl does: else a field that the server doesn't know would be dropped without a word.
        parameters = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        body = json.dumps(manifest.body).encode()
        path = resource.path(manifest.id.namespace, manifest.id.name)
        headers = {"Content-Type": "application/apply-patch+yaml"}
        answer: dict[str, Any] = self._call("PATCH", path, parameters | _dry(dry_run), content=body, headers=headers)
        return answer

    def delete(self, resource: Resource, name: Name, uid: str, *, dry_run: bool = False) -> bool:
        """Delete the object that was seen, and not one that has come since under its name. False where it is gone already."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        path = resource.path(name.namespace, name.name)
        content, headers = json.dumps(options).encode(), {"Content-Type": "application/json"}
        answer = self._call("DELETE", path, _dry(dry_run), content=content, headers=headers, missing_is_none=True)
        return answer is not None

    def log(self, namespace: str, pod: str, container: str, since: str = "") -> Iterator[tuple[str, str]]:
        """Each line of a container's log, with its time, from `since` on, until the container has ended.

        Ends early where nothing comes for a while; the caller asks again. Raises as the other calls do.
        """
        parameters = {"container": container, "follow": "true", "timestamps": "true"}
        parameters |= {"sinceTime": since} if since else {}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        try:
            with self._client.stream("GET", path, params=parameters, timeout=LOG_TIMEOUT) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer.status_code, answer.text, _body_of(answer))
                for line in _lines(answer.iter_bytes()):
                    time, _, text = line.partition(" ")
                    yield time, text
        except httpx.ReadTimeout:
            return
        except httpx.HTTPError as error:
            raise UnreachableError(_no_answer(f"{type(error).__name__}: {error}")) from error

    def allowed(self, verb: str, resource: Resource, namespace: str, subresource: str = "") -> bool:
        """Whether the caller may, as `kubectl auth can-i` asks."""
        attributes = {"verb": verb, "group": group_of(resource.api_version), "resource": resource.plural}
        attributes |= {"subresource": subresource} if subresource else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"namespace": namespace} if resource.namespaced else {})},
        }
        path, headers = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"Content-Type": "application/json"}
        return bool(self._call("POST", path, content=json.dumps(review).encode(), headers=headers)["status"]["allowed"])

    def _call(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        missing_is_none: bool = False,
    ) -> Any:
        try:
            answer = self._client.request(
                method,
                path,
                params=parameters,
                content=content,
                headers={"Accept": "application/json", **(headers or {})},
            )
        except httpx.HTTPError as error:
            raise UnreachableError(_no_answer(f"{type(error).__name__}: {error}")) from error
        body = _body_of(answer)
        if answer.is_success and isinstance(body, dict):
            return body
        if answer.status_code == NOT_FOUND and missing_is_none:
            return None
        if method == "GET" and (answer.status_code == TOO_MANY or answer.status_code >= FAILED):
            # A server that restarts, changes its leader or has too much to do: a caller that waits asks again.
            message = body.get("message", "") if isinstance(body, dict) else answer.text
            raise UnreachableError(_no_answer(f"HTTP {answer.status_code}: {_short(str(message))}"))
        raise _refusal(answer.status_code, answer.text, body)


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, parted by line feeds alone."""
    left = b""
    for part in parts:
        *whole, left = (left + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if left:
        yield left.decode(errors="replace")


def _body_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _refusal(code: int, text: str, body: Any) -> ClusterError:
    if not isinstance(body, dict) or body.get("kind") != "Status":
        return UnreachableError(_no_answer(f"HTTP {code}: {_short(text)}"))
    return RefusedError(code, _short(str(body.get("message", ""))), dict(_conflicts(body)))


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _conflicts(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field of a conflict, with who owns it in the server's words."""
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "FieldManagerConflict":
            yield cause.get("field", "?"), cause.get("message", "").removeprefix("conflict with ")


def _no_answer(why: str) -> str:
    return f"the cluster doesn't answer: {why}. `kubectl version` asks it, too; `kubectl config get-contexts` lists the contexts."


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} …"

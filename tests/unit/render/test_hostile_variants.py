"""No text breaks out of its place in what is rendered only on request, even past the checks that refuse it in a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from fleets import throughout
from manifests import LOADER, fleet_of, texts

from shardctl.fleet.settings.cluster import Placement, Reach, Storage, Toleration
from shardctl.fleet.settings.secrets import SecretRef, SecretStore
from shardctl.fleet.spec import Fleet
from shardctl.render import documents

EVERYTHING = (
    "workload: {kind: statefulset, storage: {size: 5Gi}}\n"
    "autoscaling: keda\n"
    "secrets: external-secrets\n"
    "network_policy: {}\n"
    "resource_quota: {}\n"
)
HOSTILE = [
    "x: y",
    "a\n---\nkind: Secret",
    "' \" \\",
    "{{ 7 * 7 }}{% raw %}",
    " # no",
    "- item",
    "&a *b",
    "no",
    "\u2028",
    "",
]


def _with(fleet: Fleet, text: str) -> Iterator[tuple[str, Fleet]]:
    taint = Toleration.model_construct(key=text, value=text, effect=text)
    placement = Placement.model_construct(node_selector={text: text}, tolerations=(taint,), priority_class=text)
    storage = Storage.model_construct(size=fleet.workload.storage.size, storage_class=text)
    reach = Reach.model_construct(ports=(53,), cidrs=(text,))
    store = SecretStore.model_construct(name=text, kind=text)
    secret = SecretRef.model_construct(name="s", key=text, remote=text)
    yield "placement", fleet.model_copy(update={"placement": placement})
    yield "storage", throughout(fleet, workload=fleet.workload.model_copy(update={"storage": storage}))
    policy = fleet.network_policy.model_copy(update={"dns": reach, "from_namespaces": (text,)})
    yield "network_policy", throughout(fleet, network_policy=policy)
    yield "store", fleet.model_copy(update={"secrets": fleet.secrets.model_copy(update={"store": store})})
    yield "remote", fleet.model_copy(update={"redis": fleet.redis.model_copy(update={"secret": secret})})
    yield "project", fleet.model_copy(update={"project": text})


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_breaks_out_of_its_scalar(text: str) -> None:
    for field, fleet in _with(fleet_of(EVERYTHING), text):
        seen: set[str] = set()
        for document in documents(fleet):
            (item,) = yaml.load_all(document.text, LOADER)  # one document, still of its kind
            assert (item["kind"], item["metadata"]["name"]) == (document.kind, document.name)
            seen.update(texts(item))
        assert any(text in shown for shown in seen), field

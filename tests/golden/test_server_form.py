"""What is rendered has the form in which the API server keeps it, where it compares lists as a whole.

Server-side apply compares a list without keys as one value. Where the server adds a default inside, or writes a quantity in
another form, what is applied never equals what is live: `shardctl diff` would report it on a clean cluster, and another field
manager's apply of the same file would conflict.
"""

import re
from pathlib import Path

import pytest
import yaml

from shardctl.fleet import quantities

CASES = sorted((Path(__file__).parent / "cases").iterdir())
POD = r"spec\.template\.spec"

# By kind: a path in the object, with [] for any item of a list, and what the server writes there where nothing is said.
# From the API's defaulting functions (pkg/apis/*/v1/defaults.go) and the defaults in the schemas of Gateway API v1.
DEFAULTS = {
    "Deployment|StatefulSet": {
        r"spec.template.spec.containers[].env[].valueFrom.fieldRef": {"apiVersion": "v1"},
        r"spec.template.spec.volumes[].projected.sources[].downwardAPI.items[].fieldRef": {"apiVersion": "v1"},
        r"spec.template.spec.volumes[].projected.sources[].serviceAccountToken": {"expirationSeconds": 3600},
    },
    "StatefulSet": {
        r"spec.volumeClaimTemplates[]": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "status": {"phase": "Pending"},
        },
        r"spec.volumeClaimTemplates[].spec": {"volumeMode": "Filesystem"},
    },
    "NetworkPolicy": {
        r"spec.ingress[].ports[]": {"protocol": "TCP"},
        r"spec.egress[].ports[]": {"protocol": "TCP"},
    },
    "HTTPRoute": {
        r"spec.parentRefs[]": {"group": "gateway.networking.k8s.io", "kind": "Gateway"},
        r"spec.rules[].backendRefs[]": {"group": "", "kind": "Service", "weight": 1},
        r"spec.rules[].matches[].path": {"type": "PathPrefix", "value": "/"},
        r"spec.rules[].matches[].headers[]": {"type": "Exact"},
    },
}
# Paths whose values are quantities.
QUANTITY = re.compile(
    r"\.resources\.(requests|limits)\.[^.]+$|\.sizeLimit$|\.averageValue$|^spec\.hard\.(requests|limits)\.[^.]+$"
)
# The server keeps no empty list or map, but for those that mean something by being there.
MEANT = re.compile(r"(\.emptyDir|[sS]elector|\.readOnly|^data|\.annotations)$")


def objects(case):
    """Each rendered object of a case, with its file."""
    for path in sorted((case / "out").rglob("*.yaml")):
        for document in yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            yield path.relative_to(case / "out"), document


def places(value, path=""):
    """Each value of an object with its path."""
    yield path, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from places(inner, f"{path}[]")


def faults(document):
    """What the server would keep in another form."""
    defaults = {}
    for kinds, by_path in DEFAULTS.items():
        if document["kind"] in kinds.split("|"):
            defaults |= by_path
    for path, value in places(document):
        if isinstance(value, dict):
            yield from (f"{path} lacks {name}" for name in defaults.get(path, {}) if name not in value)
        if QUANTITY.search(path) and quantities.canonical(str(value)) != value:
            yield f"{path}: {value} is {quantities.canonical(str(value))} at the server"
        if value in ([], {}) and not MEANT.search(path):
            yield f"{path} is empty"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_defaults_are_written_out_quantities_are_canonical_and_nothing_is_empty(case):
    assert [f"{file}: {fault}" for file, document in objects(case) for fault in faults(document)] == []


@pytest.mark.slow
def test_each_default_is_met_somewhere():
    """Else a path has a typing error, or a template has gone."""
    rendered = [document for case in CASES for _, document in objects(case)]
    seen = {(document["kind"], path) for document in rendered for path, _ in places(document)}
    missing = [
        f"{kinds}: {path}"
        for kinds, by_path in DEFAULTS.items()
        for path in by_path
        if not any((kind, path) in seen for kind in kinds.split("|"))
    ]
    assert not missing

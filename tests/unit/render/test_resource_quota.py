"""What the whole fleet may take of its namespace."""

from __future__ import annotations

from fractions import Fraction

import pytest
from manifests import fleet_of, only

from shardctl.fleet import quantities


def test_a_quota_holds_the_whole_fleet_at_its_largest_in_a_rollout() -> None:
    shards = (
        "shards:\n"
        "  - {name: s0, slots: 0-7}\n"  # 8 slots: 8 replicas and 2 more
        "  - {name: s1, slots: 8-11, resources: {cpu: '1'}}\n"  # 4 and 2 more
        "  - {name: s2, slots: 12-15, workload: {kind: statefulset, storage: {size: 3Gi}}, autoscaling: {max: 3}}\n"  # 3
    )
    fleet = fleet_of("resource_quota: {}\nworkload: {max_surge: 2}", shards)
    assert only(fleet, "ResourceQuota", "orders")["spec"]["hard"] == {
        "pods": "19",
        "requests.cpu": "12500m",  # 10 * 0.5 + 6 * 1 + 3 * 0.5
        "requests.memory": "9728Mi",
        "requests.ephemeral-storage": "1216Mi",
        "limits.cpu": "38",
        "limits.memory": "9728Mi",
        "limits.ephemeral-storage": "2432Mi",
        "persistentvolumeclaims": "3",
        "requests.storage": "9Gi",
    }


def test_headroom_is_added_to_everything() -> None:
    hard = only(fleet_of("resource_quota: {headroom_percent: 50}"), "ResourceQuota", "orders")["spec"]["hard"]
    assert (hard["pods"], hard["requests.cpu"], hard["limits.memory"]) == ("27", "13500m", "13824Mi")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("250m", Fraction(1, 4)),
        ("1.5Gi", 1610612736),
        ("512Mi", 2**29),
        ("1k", 1000),
        ("2T", 2 * 10**12),
        ("0", 0),
    ],
)
def test_quantities_are_exact(text: str, number: Fraction) -> None:
    assert quantities.read(text) == number


@pytest.mark.parametrize("text", ["", "1.", "1Xi", "-1", "1e3", "1 Gi"])
def test_what_isnt_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a quantity"):
        quantities.read(text)


def test_quantities_are_written_short_and_never_too_small() -> None:
    assert quantities.cores(Fraction(5, 2)) == "2500m"
    assert quantities.cores(Fraction(1, 3)) == "334m"
    assert quantities.cores(Fraction(4)) == "4"
    assert quantities.bytes_of(Fraction(2**30)) == "1Gi"
    assert quantities.bytes_of(Fraction(3 * 2**20)) == "3Mi"
    assert quantities.bytes_of(Fraction(1000)) == "1000"
    assert quantities.bytes_of(Fraction(1, 2)) == "1"
    assert quantities.bytes_of(Fraction(0)) == "0"

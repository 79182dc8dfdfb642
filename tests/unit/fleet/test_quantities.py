"""Quantities as Kubernetes' resource.Quantity writes them."""

import pytest

from shardctl.fleet import quantities


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1.5Gi", "1536Mi"),
        ("1024Mi", "1Gi"),
        ("1024Ti", "1Pi"),
        ("1Gi", "1Gi"),
        ("1.1Gi", "1181116006400m"),  # no whole number of bytes
        ("512Ki", "512Ki"),
        ("0.5Ki", "512"),
        ("1000", "1k"),
        ("1000k", "1M"),
        ("1500", "1500"),
        ("0.5", "500m"),
        ("1.5", "1500m"),
        ("1000m", "1"),
        ("0.0001", "100u"),
        ("0", "0"),
        ("0Gi", "0"),
        ("2", "2"),
        ("1024", "1024"),
    ],
)
def test_the_canonical_form_is_the_servers(text, written):
    assert quantities.canonical(text) == written
    assert quantities.read(text) == quantities.read(written)
    assert quantities.canonical(written) == written

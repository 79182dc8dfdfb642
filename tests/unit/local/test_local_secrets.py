"""Where a local fleet finds the Secrets of its HTTP backends."""

from __future__ import annotations

import pytest

from shardctl.errors import UsageError
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.secrets import environment

FLEET = """
fleet: jobs
project: my-project
image: example.com/consumer:1
message_types:
  tick: {http: {url: "https://localhost/", auth: {kind: %s, secret: login}, ca_secret: ca}, routing_key: job}
shards: [{name: all, slots: 0-1023}]
"""


def fleet(text):
    return fleet_from(yamlfile.parse(text, "shards.yaml"))


def test_what_is_missing_is_reported_with_the_files_wanted(tmp_path):
    wants = fleet(FLEET % "basic")
    with pytest.raises(
        UsageError, match=r"SHARDCTL_SECRETS_DIR isn't set.* need ca/ca.crt, login/password, login/username"
    ):
        environment(wants, {})
    (tmp_path / "login").mkdir()
    (tmp_path / "login" / "username").write_text("me")
    with pytest.raises(UsageError, match=r"lacks ca/ca.crt, login/password: files"):
        environment(wants, {"SHARDCTL_SECRETS_DIR": str(tmp_path)})


def test_consumers_get_the_folder_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("s/login/token", "s/ca/ca.crt"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("x")
    assert environment(fleet(FLEET % "bearer"), {"SHARDCTL_SECRETS_DIR": "s"}) == {
        "SHARDCTL_SECRETS_DIR": str(tmp_path / "s")
    }


def test_a_fleet_without_secrets_asks_for_none():
    assert environment(fleet(FLEET.replace(", auth: {kind: %s, secret: login}, ca_secret: ca", "")), {}) == {}

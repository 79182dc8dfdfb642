"""`gateway` of shards.yaml: what it may be, what is rendered of it, and how the API is described."""

import json

import jsonschema
import pytest
from gateway_kit import FLEET, fleet

from shardctl import render
from shardctl.cli import main
from shardctl.errors import UsageError
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.gateway import server
from shardctl.gateway.encoding import Encoder
from shardctl.gateway.fields import FieldError
from shardctl.gateway.openapi import body_of, document
from shardctl.render import cloud
from shardctl.render.gateway import config_text
from shardctl.wire.values import strictest


@pytest.mark.parametrize(
    ("gateway", "says"),
    [
        ("{auth: keys}", "needs a secret"),
        ("{auth: {kind: keys}}", "needs a secret"),
        ("{auth: {kind: oidc, clients: {a: {}}}}", "needs an audience"),
        ("{auth: {kind: oidc, audience: x}}", "needs clients"),
        ("{auth: {kind: oidc, audience: x, clients: {a: {}}, jwks_url: 'http://example.com/k'}}", "https://"),
        ("{auth: {kind: none, clients: {a: {}}}}", "kind: keys or kind: oidc"),
        ("{auth: {}}", r"gateway\.auth\.kind: is missing"),
        ("{auth: {kind: none, grace: 5s}}", "grace needs"),
        ("{auth: {kind: keys, secret: {name: k}, clients: {}}}", "needs at least 1 of these, and has 0"),
        ("{auth: {kind: keys, secret: {name: k}, clients: {a: {types: []}}}}", "no type"),
        (
            "{auth: {kind: keys, secret: {name: k}, clients: {a: {types: [ordr]}}}}",
            r"no message type ordr.*the types are order",
        ),
        ("{auth: {kind: oidc, audience: x, clients: {'*': {}}}}", "everybody who has an account"),
        ("{autoscaling: {kind: keda}}", "no backlog"),
        ("{max_body_bytes: 2000000, max_in_flight_bytes: 3000000}", "twice"),
        ("{publish_timeout: 5m}", "between 1s and 60s"),
        ("{rate_limit: 0}", "rate_limit"),
    ],
)
def test_what_makes_no_sense_is_refused(gateway, says):
    with pytest.raises(UsageError, match=says):
        fleet(gateway)


def test_a_gateway_reports_who_may_write():
    with pytest.raises(UsageError, match=r"who may write.*auth: none"):
        fleet_from(yamlfile.parse(FLEET.rstrip() + " {}\n"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com"])
def test_without_a_gateway_in_the_file_other_machines_are_not_served(host):
    with pytest.raises(UsageError, match=r"anybody could write.*gateway\.auth"):
        server.run(fleet().model_copy(update={"gateway": None}), server.Options(host))


@pytest.mark.parametrize(
    ("host", "warned"), [("0.0.0.0", True), ("::1", False), ("127.0.0.2", False), ("localhost", False)]
)
def test_an_open_gateway_warns_if_other_machines_reach_it(host, warned, caplog):
    server._warn_if_open(fleet(), server.Options(host))
    assert bool(caplog.records) == warned


def test_validate_warns_of_a_gateway_that_anybody_may_write_to(tmp_path, capsys):
    file = tmp_path / "shards.yaml"
    file.write_text(FLEET.rstrip() + " {auth: none}\n")
    assert main(["validate", "-f", str(file)]) == 0
    assert "WARNING: gateway.auth is none: anyone who reaches Service shop-gateway" in capsys.readouterr().err
    assert main(["validate", "-f", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 1
    file.write_text(FLEET.rstrip() + " {auth: {kind: keys, secret: {name: k}}}\n")
    assert main(["validate", "-f", str(file)]) == 0
    assert "WARNING" not in capsys.readouterr().err


def test_the_pods_slice_is_a_file_that_loads_to_the_same_routing():
    whole = fleet("{auth: {kind: keys, secret: {name: k}}, rate_limit: 5, resources: {cpu: 250m}, pre_stop: 9s}")
    read = fleet_from(yamlfile.parse(config_text(whole), "gateway.json"))
    assert Encoder(read).kinds["order"]._shards == Encoder(whole).kinds["order"]._shards
    assert (read.routing, read.message_types, read.topic) == (whole.routing, whole.message_types, whole.topic)
    assert read.gateway.auth == whole.gateway.auth
    assert "cpu" not in config_text(whole), "what only rendering reads must not roll the pods"


def test_without_a_gateway_nothing_of_one_is_rendered():
    plain = fleet().model_copy(update={"gateway": None})
    assert not [document for document in render.documents(plain) if "gateway" in document.name]
    assert not [account for account in cloud.cloud(plain).accounts if "gateway" in account.name]


def test_its_service_account_may_publish_and_nothing_else():
    made = cloud.cloud(fleet())
    mine = [grant for grant in made.grants if "gateway" in grant.name]
    assert sorted((grant.role, grant.on) for grant in mine) == [
        ("roles/iam.workloadIdentityUser", "account"),
        ("roles/pubsub.publisher", "topic"),
        ("roles/pubsub.publisher", "topic"),
    ]
    assert {grant.resource.id for grant in mine if grant.on == "topic"} == {"shop-writes-0", "shop-writes-1"}


def test_no_consumers_selector_takes_the_gateways_pods():
    import yaml

    deployments = [
        yaml.safe_load(document.text) for document in render.documents(fleet(network_policy=None), kinds=["Deployment"])
    ]
    gateway = next(deployment for deployment in deployments if deployment["metadata"]["name"] == "shop-gateway")
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    for other in deployments:
        selector = other["spec"]["selector"]["matchLabels"]
        assert (selector.items() <= labels.items()) == (other is gateway)


def test_a_shard_of_the_same_name_is_refused():
    shards = tuple(
        shard.model_copy(update={"name": "gateway"}) if shard.name == "s0" else shard for shard in fleet().shards
    )
    same = fleet(shards=shards)
    with pytest.raises(UsageError, match="would share the name shop-gateway"):
        list(render.documents(same))
    with pytest.raises(UsageError, match="would share the name"):
        cloud.cloud(same)


def test_the_document_describes_every_type():
    described = document(fleet("{auth: {kind: oidc, audience: x, clients: {a@b.c: {}}}}"))
    assert set(described["paths"]) == {
        "/v1/writes",
        *(f"/v1/writes/{name}" for name in fleet().message_types),
    }
    assert {"401", "403"} <= described["paths"]["/v1/writes/order"]["post"]["responses"].keys()
    json.dumps(described)
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "body", "good"),
    [
        ("order", {"order_id": "a", "amount": "1.5", "lines": [1], "placed_at": None}, True),
        ("order", {"order_id": "a", "more": 1}, False),
        ("order", {"order_id": 5}, False),
        ("order", {"status": "a"}, False),
        ("order", {"order_id": "a", "amount": "x"}, False),
        ("counter", {"id": 1, "day": 2, "revision": 3}, True),
        ("counter", {"id": 1, "day": 2}, False),
        ("counter", {"id": 1, "day": 1 << 31, "revision": 3}, False),
        ("stock/level", {"sku": 5, "any": {}}, True),
    ],
)
def test_the_schema_and_the_door_agree(kind, body, good):
    schema = body_of(fleet().message_types[kind], strictest(fleet().databases))
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == good
    encoder = Encoder(fleet())
    from datetime import UTC, datetime

    try:
        encoder.encode(encoder.kinds[kind], body, json.dumps(body).encode(), datetime.now(UTC), {})
    except FieldError:
        assert not good
    else:
        assert good

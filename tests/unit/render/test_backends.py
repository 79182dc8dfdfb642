"""What HTTP backends need of the pods: Secrets as files, ports through the policy, times that fit."""

from __future__ import annotations

import pytest
from manifests import objects, pod_of

from shardctl.fleet import backends, yamlfile
from shardctl.fleet.advice import advice
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError

FLEET = """
fleet: jobs
project: my-project
image: example.com/consumer:1
routing: {slot_bits: 4}
network_policy: {%s}
message_types:
  a: {http: {url: "https://a.example.com", auth: {kind: basic, secret: login}, ca_secret: login}, routing_key: id}
  b: {http: {url: "http://b:8080/x"%s}, routing_key: id}
  row: {table: rows, key: id, columns: {id: text}}
consumer: {batch_max_rows: 50%s}
shards:
  - {name: both, slots: 0-15, types: [a, b]}
  - {name: rows, slots: 0-15, types: [row]}
"""

MIXED = FLEET.replace("types: [a, b]", "except_types: []").replace("  - {name: rows, slots: 0-15, types: [row]}\n", "")


def fleet(policy="", backend="", consumer="", text=FLEET):
    return fleet_from(yamlfile.parse(text % (policy, backend, consumer), "shards.yaml"))


def of_shard(kind, shard, **given):
    (manifest,) = (item for item in objects(fleet(**given), kind) if item["metadata"]["labels"].get("shard") == shard)
    return manifest


def test_a_secret_is_mounted_once_read_only_where_a_type_of_the_shard_needs_it():
    pod = pod_of(of_shard("Deployment", "both"))
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    assert volume["secret"]["secretName"] == "login"
    assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt", "password", "username"]
    assert volume["secret"]["defaultMode"] == 0o440
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"])
    assert (mount["mountPath"], mount["readOnly"]) == (f"{backends.SECRETS_DIRECTORY}/login", True)
    assert not any("secret" in volume for volume in pod_of(of_shard("Deployment", "rows"))["volumes"])


def test_certificates_are_mounted_into_every_consumer_beside_what_its_types_need():
    text = FLEET + "certificates: {login: [tls.key], authority: [ca.crt]}\n"
    mounted_files = {
        shard: {
            volume["secret"]["secretName"]: [item["path"] for item in volume["secret"]["items"]]
            for volume in pod_of(of_shard("Deployment", shard, text=text))["volumes"]
            if "secret" in volume
        }
        for shard in ("both", "rows")
    }
    assert mounted_files == {
        "both": {"authority": ["ca.crt"], "login": ["ca.crt", "password", "tls.key", "username"]},
        "rows": {"authority": ["ca.crt"], "login": ["tls.key"]},
    }


def reach(shard, **given):
    rules = of_shard("NetworkPolicy", shard, **given)["spec"]["egress"]
    return [([port["port"] for port in rule["ports"]], rule.get("to")) for rule in rules]


def test_the_policy_lets_calls_through_to_the_ports_of_the_backends():
    assert ([443, 8080], None) in reach("both")
    assert ([443, 8080], None) not in reach("rows")
    narrowed = reach("both", policy="backends: {ports: [8443], cidrs: [10.0.0.0/8]}")
    assert ([8443], [{"ipBlock": {"cidr": "10.0.0.0/8"}}]) in narrowed
    assert ([443, 8080], None) not in narrowed


def test_a_call_must_end_before_the_database_ends_its_transaction():
    with pytest.raises(SpecError, match=r"message_types.b.http.timeout: a call may take 16s.*30s.*make it 15s or less"):
        fleet(backend=", timeout: 16s")
    assert fleet(backend=", timeout: 16s", consumer=", statement_timeout: 32s")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, []),
        ({"consumer": ", drain_timeout: 19s"}, ["drain_timeout"]),
        ({"backend": ", concurrency: 2"}, ["28 or fewer"]),
        ({"text": MIXED}, ["writes to tables share transactions"]),
    ],
    ids=["fits", "drain", "rows", "mixed"],
)  # fmt: skip
def test_advice(given, says):
    sentences = list(backends.advice(fleet(**given)))
    assert len(sentences) == len(says)
    assert all(word in sentence for word, sentence in zip(says, sentences, strict=True))
    assert set(sentences) <= set(advice(fleet(**given)))


@pytest.mark.parametrize(
    ("http", "says"),
    [
        ("{url: 'ftp://a'}", "begins with https:// or http://"),
        ("{url: 'https://u:p@a/'}", "without user, password and blanks"),
        ("{url: 'https://a:70000'}", "ports run from 1 to 65535"),
        ("{url: 'https://a:0/'}", "ports run from 1 to 65535"),
        ("{url: 'https://a/#x'}", "what follows a '#' is never sent"),
        ("{url: 'http://a', auth: {kind: bearer, secret: s}}", "in the clear"),
        ("{url: 'http://a', auth: google}", "in the clear"),
        ("{url: 'https://a', auth: gogle}", "mapping of fields is wanted|isn't one of"),
        ("{url: 'https://a', auth: {kind: basic}}", "basic needs secret"),
        ("{url: 'https://a', auth: {kind: oauth2, secret: s}}", "oauth2 needs secret and token_url"),
        ("{url: 'https://a', auth: {kind: google, secret: s}}", "secret has no use with kind: google"),
        ("{url: 'https://a', auth: {kind: bearer, secret: s, audience: x}}", "audience has no use with kind: bearer"),
        (
            "{url: 'https://a', auth: {kind: oauth2, secret: s, client_secret: hush}}",
            "auth.client_secret: there is no such field",
        ),
        (
            "{url: 'https://a', auth: {kind: oauth2, secret: s, token_url: 'http://b/t'}}",
            "the client's secret would go over http://",
        ),
        (
            "{url: 'https://a', auth: {kind: oauth2, secret: s, token_url: 'https://b:0/t'}}",
            "token_url: ports run from 1",
        ),
        ("{url: 'https://a', auth: {kind: oauth2, secret: s, token_url: 'https://u:p@b/t'}}", "without user, password"),
        (
            "{url: 'https://a', auth: {kind: oauth2, secret: s, token_url: 'https://b/', scopes: [a b]}}",
            "a scope: visible ASCII",
        ),
        ("{url: 'https://a', auth: {kind: google, audience: 'a b'}}", "a URL or a name, without blanks"),
        ("{url: 'http://a', ca_secret: s}", "ca_secret has no use over http://"),
        ("{url: 'https://a', attempts: 3}", r"breaker.failures \(5\) exceeds attempts \(3\)"),
        ("{url: 'https://a', retry_minimum: 20s}", "retry_minimum exceeds retry_maximum"),
        ("{url: 'https://a', timeout: 100ms}", "a duration is a whole number with a unit"),
    ],
)
def test_what_a_backend_may_not_be(http, says):
    text = f"""
fleet: jobs
project: my-project
image: example.com/consumer:1
message_types:
  a: {{http: {http}, routing_key: id}}
shards: [{{name: all, slots: 0-1023}}]
"""
    with pytest.raises(SpecError, match=says) as refused:
        fleet_from(yamlfile.parse(text, "shards.yaml"))
    assert "hush" not in str(refused.value)


TOKENS = """
fleet: jobs
project: my-project
image: example.com/consumer:1
routing: {slot_bits: 4}
network_policy: {}
secrets: external-secrets
message_types:
  run: {http: {url: "https://run.example.com:8443/x", auth: google}, routing_key: id}
  crm:
    http:
      url: https://crm.example.com
      auth: {kind: oauth2, secret: client, token_url: "https://login.example.com:9443/t", ca_secret: client}
    routing_key: id
shards:
  - {name: google, slots: 0-15, types: [run]}
  - {name: client, slots: 0-15, types: [crm]}
"""


def of_tokens(kind, shard):
    items = objects(fleet_from(yamlfile.parse(TOKENS)), kind)
    return [item for item in items if item["metadata"]["labels"].get("shard") == shard]


def test_a_clients_secret_is_mounted_and_filled_and_stands_nowhere_else():
    (volume,) = (volume for volume in pod_of(of_tokens("Deployment", "client")[0])["volumes"] if "secret" in volume)
    assert volume["secret"]["secretName"] == "client"
    assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt", "client_id", "client_secret"]
    (filled,) = (item for item in of_tokens("ExternalSecret", "client") if item["metadata"]["name"] == "client")
    assert {data["secretKey"]: data["remoteRef"]["key"] for data in filled["spec"]["data"]} == {
        "client_id": "client-client_id",
        "client_secret": "client-client_secret",
        "ca.crt": "client-ca-crt",
    }


def test_google_needs_no_secret_but_the_annotation_that_gives_the_pods_their_identity():
    assert not [volume for volume in pod_of(of_tokens("Deployment", "google")[0])["volumes"] if "secret" in volume]
    (account,) = of_tokens("ServiceAccount", "google")
    email = "jobs-google@my-project.iam.gserviceaccount.com"
    assert account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"] == email


def test_the_policy_lets_pods_reach_the_metadata_server_and_the_token_endpoint():
    rules = {
        shard: [
            ([port["port"] for port in rule["ports"]], rule.get("to", []))
            for rule in of_tokens("NetworkPolicy", shard)[0]["spec"]["egress"]
        ]
        for shard in ("google", "client")
    }
    assert ([443, 9443], []) in rules["client"]
    assert ([8443], []) in rules["google"]
    assert ([80, 8080], [{"ipBlock": {"cidr": "169.254.169.254/32"}}]) in rules["google"]


def test_what_an_id_token_is_for():
    run = fleet_from(yamlfile.parse(TOKENS)).message_types["run"].http
    assert run.token_audience == "https://run.example.com:8443"
    assert run.model_copy(update={"auth": run.auth.model_copy(update={"audience": "x"})}).token_audience == "x"

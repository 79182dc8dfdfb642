"""Push delivery in every form in which a fleet is made: the same endpoint, token and wrapping; and what stands around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from shardctl.errors import UsageError
from shardctl.fleet import coverage
from shardctl.fleet.advice import advice
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError
from shardctl.fleet.yamlfile import parse
from shardctl.local.standins import on_this_machine
from shardctl.provision import wanted_subscriptions
from shardctl.render import documents, gcloud, terraform
from tests.unit.render.cloud_kit import FLEET, fleet_of
from tests.unit.render.test_gcloud import Cloud

ACCOUNT = "pubsub-push@other-project.iam.gserviceaccount.com"
PUSH = f"""
delivery:
  kind: push
  url: https://push.example.com/orders
  service_account: {ACCOUNT}
"""
UNWRAPPED = PUSH + "  wrapped: false\n  audience: orders-fleet\n"
# Each resource is a process of the script's.
SMALL = FLEET.partition("schedules:")[0] + "shards: [{name: s0, slots: 0-15}]\n"
ENDPOINT = "https://push.example.com/orders/s0/orders-s0-g1"


def rendered(fleet, kind):
    texts = [document.text for document in documents(fleet, kinds=[kind])]
    return {manifest["metadata"]["name"]: manifest for manifest in map(yaml.safe_load, texts)}


def kubernetes(text):
    return fleet_of(text.replace("provisioner: terraform", ""))


@pytest.mark.parametrize("unwrapped", [False, True])
def test_all_formats_agree(unwrapped):
    text = FLEET + (UNWRAPPED if unwrapped else PUSH)
    audience = "orders-fleet" if unwrapped else "https://push.example.com/orders"
    connector = rendered(kubernetes(text), "PubSubSubscription")["orders-s0-g1"]["spec"]["pushConfig"]
    assert connector == {
        "pushEndpoint": ENDPOINT,
        "oidcToken": {"serviceAccountEmail": ACCOUNT, "audience": audience},
    } | ({"noWrapper": {"writeMetadata": True}} if unwrapped else {})
    module = json.loads(terraform.text(fleet_of(text)))["resource"]["google_pubsub_subscription"]["orders-s0-g1"]
    assert module["push_config"] == {
        "push_endpoint": ENDPOINT,
        "oidc_token": {"service_account_email": ACCOUNT, "audience": audience},
    } | ({"no_wrapper": {"write_metadata": True}} if unwrapped else {})
    [wanted] = [
        subscription
        for subscription in wanted_subscriptions(fleet_of(text))
        if subscription.name.endswith("/orders-s0-g1")
    ]
    assert (wanted.push_config.push_endpoint, wanted.push_config.oidc_token.audience) == (ENDPOINT, audience)
    assert wanted.push_config.oidc_token.service_account_email == ACCOUNT
    assert wanted.push_config.no_wrapper.write_metadata is unwrapped
    [line] = [
        line for line in gcloud.text(fleet_of(text)).splitlines() if line.startswith("subscription orders-s0-g1 ")
    ]
    assert f"--push-endpoint={ENDPOINT} " in line
    assert ("--push-no-wrapper-write-metadata" in line) is unwrapped


def test_only_shards_subscriptions_push():
    """Dead letters and strays are people's, who pull them."""
    subscriptions = rendered(kubernetes(FLEET + PUSH), "PubSubSubscription")
    assert sorted(name for name, subscription in subscriptions.items() if "pushConfig" in subscription["spec"]) == [
        "orders-s0-g1",
        "orders-s1-g3",
    ]


def test_pubsubs_own_account_may_sign_for_the_one_that_is_named():
    grant = rendered(kubernetes(FLEET + PUSH), "IAMPolicyMember")["orders-push-agent"]["spec"]
    assert grant == {
        "resourceRef": {
            "kind": "IAMServiceAccount",
            "external": f"projects/other-project/serviceAccounts/{ACCOUNT}",
        },
        "role": "roles/iam.serviceAccountTokenCreator",
        "member": "serviceAccount:service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com",
    }


def test_a_service_leads_to_the_port_that_listens():
    fleet = kubernetes(FLEET + PUSH)
    service = rendered(fleet, "Service")["orders-s0-push"]["spec"]
    [container] = rendered(fleet, "Deployment")["orders-s0"]["spec"]["template"]["spec"]["containers"]
    assert {"name": service["ports"][0]["targetPort"], "containerPort": 8081} in container["ports"]
    assert service["selector"] == {"app": "orders-consumer", "shard": "s0"}


@pytest.mark.parametrize(
    ("policy", "sources"),
    [
        ("{}", ["35.191.0.0/16", "130.211.0.0/22"]),
        ("{push_from: {cidrs: [10.0.0.0/8], namespaces: [ingress]}}", ["10.0.0.0/8", "ingress"]),
        ("{push_from: {cidrs: []}}", None),
        ("{from_namespaces: [], push_from: {cidrs: [10.0.0.0/8]}}", ["10.0.0.0/8"]),
    ],
)
def test_the_network_policy_admits_what_is_in_front_of_the_consumer(policy, sources):
    policy_spec = rendered(kubernetes(f"{FLEET}{PUSH}network_policy: {policy}"), "NetworkPolicy")["orders-s0"]["spec"]
    [rule] = [rule for rule in policy_spec["ingress"] if rule["ports"][0]["port"] == "push"]
    if sources is None:
        assert "from" not in rule
        return
    named = [source["ipBlock"]["cidr"] if "ipBlock" in source else source["namespaceSelector"]["matchExpressions"][0]["values"][0] for source in rule["from"]]  # fmt: skip  # noqa: E501
    assert named == sources


@pytest.mark.proof
@pytest.mark.slow
def test_the_script_changes_a_subscription_to_and_fro(tmp_path):
    cloud = Cloud(tmp_path)
    account = {
        f"iam service-accounts {ACCOUNT}": {"name": ACCOUNT, "policy": [], "flags": {}}
    }  # yours, and there before
    (tmp_path / "state.json").write_text(json.dumps(account))
    for text in (SMALL, SMALL + PUSH, SMALL + UNWRAPPED, SMALL + PUSH, SMALL):
        fleet = fleet_of(text)
        assert "subscription orders-s0-g1" in " ".join(cloud.done(fleet))
        assert cloud.done(fleet) == []
    assert not any("push" in flag for flag in cloud.state["pubsub subscriptions orders-s0-g1"]["flags"])


@pytest.mark.parametrize(
    ("delivery", "message"),
    [
        ("push", "push"),
        ("{kind: push, url: 'https://a.example.com'}", "a url and a service_account"),
        (f"{{kind: push, service_account: {ACCOUNT}}}", "a url and a service_account"),
        (f"{{kind: push, url: 'http://a.example.com', service_account: {ACCOUNT}}}", "in the clear"),
        (f"{{kind: push, url: 'https://a.example.com/?b=c', service_account: {ACCOUNT}}}", "leave out"),
        ("{kind: push, url: 'https://a.example.com', service_account: nobody}", "service account's address"),
    ],
)
def test_what_cant_work_is_refused(delivery, message):
    with pytest.raises(SpecError, match=message):
        fleet_of(f"{FLEET}delivery: {delivery}\n")


def test_a_leader_and_push_dont_go_together():
    with pytest.raises(SpecError, match="delivery: pull"):
        fleet_of(f"{FLEET}{PUSH}leader: redis\n")


def test_advice_on_attempts_and_on_pods_that_stop():
    def sentences(text):
        return " ".join(sentence for sentence in advice(fleet_of(text)) if sentence.startswith("delivery:"))

    assert "max_delivery_attempts: 100" in sentences(FLEET + PUSH)
    assert "pre_stop" in sentences(FLEET + PUSH)
    assert sentences(f"{FLEET}{PUSH}subscription: {{max_delivery_attempts: 100}}\nworkload: {{pre_stop: 10s}}\n") == ""
    assert sentences(FLEET) == ""


def test_it_isnt_run_on_this_machine():
    with pytest.raises(UsageError, match="delivery: pull"):
        on_this_machine(fleet_of(FLEET + PUSH))


def test_the_golden_cases_prove_what_they_render():
    for case in (Path(__file__).parents[2] / "golden" / "cases").glob("push*"):
        assert coverage.faults(fleet_from(parse((case / "shards.yaml").read_text()))) == ()

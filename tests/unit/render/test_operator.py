"""The identity of commands that run in the cluster: its grants, what it may connect to, and which files can't have one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import fleet_of, objects, only

from shardctl.fleet.operators import RIGHTS
from shardctl.fleet.settings.operator import EVERY_COMMAND
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import SpecError

PAGE = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()
PLACES = {
    "project": "the project",
    "topics": "each topic for writes",
    "letters": "each subscription for dead letters and strays",
}
CLOUD_SQL = """\
  - name: s{number}
    slots: {slots}
    database: {{cloud_sql: {{instance: "my-project:europe-west1:{instance}", database: s{number}{more}}}}}
"""


def granted(fleet: Fleet) -> set[tuple[str, str]]:
    """What the operator's account may do, where: `(role, resource)`."""
    return {
        (item["spec"]["role"], item["spec"]["resourceRef"].get("name", item["spec"]["resourceRef"].get("external")))
        for item in objects(fleet, "IAMPolicyMember")
        if item["spec"].get("memberFrom", {}).get("serviceAccountRef", {}).get("name") == "orders-operator"
    }


def test_the_page_names_each_commands_rights() -> None:
    section = PAGE.partition("### Of the operator")[2].partition("### Yours")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    assert rows.keys() == set(EVERY_COMMAND) == RIGHTS.keys()
    for command, rights in RIGHTS.items():
        assert {right.role for right in rights} == set(re.findall(r"`(roles/[\w.]+)`", rows[command]))
        assert all(PLACES[right.on] in rows[command] for right in rights)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ("[verify, adopt, parked]", set()),
        ("[status]", {("roles/monitoring.viewer", "projects/my-project")}),
        (
            "[deadletter]",
            {
                ("roles/monitoring.viewer", "projects/my-project"),
                ("roles/pubsub.publisher", "data-writes"),
                ("roles/pubsub.subscriber", "orders-dead"),
                ("roles/pubsub.subscriber", "orders-strays"),
                ("roles/pubsub.viewer", "orders-dead"),
                ("roles/pubsub.viewer", "orders-strays"),
            },
        ),
        (
            "[deadletter, provision]",
            {("roles/monitoring.viewer", "projects/my-project"), ("roles/pubsub.editor", "projects/my-project")},
        ),
    ],
    ids=["databases", "status", "letters", "an editor needs no more"],
)  # fmt: skip
def test_a_file_grants_what_its_commands_need_and_no_more(commands: str, expected: set[tuple[str, str]]) -> None:
    assert granted(fleet_of(f"operator: {{commands: {commands}}}")) == expected


def test_nothing_is_rendered_without_an_operator() -> None:
    assert not [item for item in objects(fleet_of()) if "operator" in item["metadata"]["name"]]


def test_the_account_may_change_one_config_map_and_nothing_else() -> None:
    (role,) = objects(fleet_of("operator: {}"), "Role")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["orders-operator"],
            "verbs": ["get", "patch"],
        }
    ]
    assert "data" not in only(fleet_of("operator: {}"), "ConfigMap", "orders-operator")


def test_a_job_reaches_each_shards_database_as_its_own_policy_says() -> None:
    shards = """\
shards:
  - {name: s0, slots: 0-7, network_policy: {database: {ports: [5432], cidrs: [10.0.0.1/32]}}}
  - {name: s1, slots: 8-15, network_policy: {database: {ports: [3306], cidrs: [10.0.0.2/32]}}}
"""
    more = "operator: {}\nnetwork_policy: {kubernetes_api: {ports: [6443], cidrs: [10.0.0.9/32]}}"
    policy = only(fleet_of(more, shards), "NetworkPolicy", "orders-operator")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    reached = {
        (rule["ports"][0]["port"], rule["to"][0]["ipBlock"]["cidr"]) for rule in policy["egress"] if "to" in rule
    }
    assert reached > {(5432, "10.0.0.1/32"), (3306, "10.0.0.2/32"), (6443, "10.0.0.9/32")}


def test_each_instance_of_cloud_sql_is_granted_once() -> None:
    shards = "shards:\n" + "".join(
        CLOUD_SQL.format(number=number, slots=slots, instance=instance, more=more)
        for number, slots, instance, more in [
            (0, "0-3", "one", ""),
            (1, "4-7", "one", ""),
            (2, "8-11", "two", ", engine: mysql"),
            (3, "12-15", "three", ", iam: false"),
        ]
    )
    fleet = fleet_of("operator: {commands: [verify]}\ndatabases: [postgresql, mysql]", shards)
    members = [
        (item["spec"]["role"].rpartition(".")[2], item["spec"]["condition"]["title"])
        for item in objects(fleet, "IAMPolicyMember")
        if item["metadata"]["name"].startswith("orders-operator-") and "condition" in item["spec"]
    ]
    assert sorted(members) == [
        ("client", "one"), ("client", "three"), ("client", "two"), ("instanceUser", "one"), ("instanceUser", "two"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shards", "text"),
    [
        ("shards: [{name: operator, slots: 0-15}]", "would share the service account orders-operator"),
        (
            "shards:\n"
            + CLOUD_SQL.format(number=0, slots="0-7", instance="one", more=", iam: false")
            + CLOUD_SQL.format(number=1, slots="8-15", instance="two", more=", iam: false"),
            "at the same port 5432",
        ),
    ],
    ids=["name", "port"],
)
def test_what_no_operator_can_have_is_a_fault_of_the_file(shards: str, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        fleet_of("operator: {}", shards)
    fleet_of("", shards)

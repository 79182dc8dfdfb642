"""The gcloud script, run by sh against a gcloud of our own: `fake_gcloud.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardctl.errors import UsageError
from shardctl.fleet.spec import Fleet
from shardctl.provision import wanted_subscriptions, wanted_topics
from shardctl.render import documents, gcloud
from shardctl.render.templates import built_in
from tests.unit.render.cloud_kit import FLEET, fleet_of

pytestmark = pytest.mark.slow
FAKE = Path(__file__).with_name("fake_gcloud.py")

TOPIC_REGIONS = {"--message-storage-policy-allowed-regions", "--message-storage-policy-enforce-in-transit"}


class Cloud:
    """A project that begins empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        binary = folder / "bin" / "gcloud"
        binary.parent.mkdir()
        binary.write_text(f"#!/bin/sh\nexec '{sys.executable}' -SE '{FAKE}' \"$@\"\n")
        binary.chmod(0o755)

    def run(self, fleet: Fleet) -> subprocess.CompletedProcess[str]:
        script = self.folder / "script.sh"
        script.write_text(gcloud.text(fleet))
        path = f"{self.folder / 'bin'}:/usr/bin:/bin"
        environment = {"PATH": path, "FAKE_GCLOUD": str(self.folder), "HOME": str(self.folder)}
        return subprocess.run(["/bin/sh", script], capture_output=True, text=True, env=environment, check=False)

    def done(self, fleet: Fleet) -> list[str]:
        """The lines of a run that must succeed, without what was identical."""
        run = self.run(fleet)
        assert (run.returncode, run.stderr) == (0, "")
        return [line for line in run.stdout.splitlines() if not line.startswith("identical")]

    @property
    def state(self):
        return json.loads((self.folder / "state.json").read_text())

    @property
    def changes(self) -> list[list[str]]:
        """Every call that changed something."""
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def change(self, resource: str, **flags: str) -> None:
        state = self.state
        state[resource]["flags"].update({f"--{name.replace('_', '-')}": value for name, value in flags.items()})
        (self.folder / "state.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Cloud:
    """A project in which the script has run once. Leave it as it is."""
    cloud = Cloud(tmp_path_factory.mktemp("gcloud"))
    assert {line.split()[0] for line in cloud.done(fleet_of())} == {"create"}
    return cloud


@pytest.fixture
def cloud(first_run: Cloud, tmp_path: Path) -> Cloud:
    """A copy of it."""
    for name in ("state.json", "log"):
        shutil.copy(first_run.folder / name, tmp_path)
    return Cloud(tmp_path)


def test_the_second_run_changes_nothing(cloud: Cloud) -> None:
    changes = cloud.changes
    assert not any("delete" in word or "remove" in word for call in changes for word in call)
    assert cloud.done(fleet_of()) == []
    assert cloud.changes == changes


def test_what_it_makes_is_what_provision_wants(cloud: Cloud) -> None:
    fleet = fleet_of()
    state = cloud.state
    for topic in wanted_topics(fleet):
        made = state.pop(f"pubsub topics {topic.name.rpartition('/')[2]}")
        flags, policy = made["flags"], topic.message_storage_policy
        assert flags["--labels"] == dict(topic.labels)
        assert flags["--topic-encryption-key"] == topic.kms_key_name
        regions = flags["--message-storage-policy-allowed-regions"].split(",")
        assert regions == sorted(policy.allowed_persistence_regions)
        assert ("--message-storage-policy-enforce-in-transit" in flags) is policy.enforce_in_transit
    for wanted in wanted_subscriptions(fleet):
        flags = state.pop(f"pubsub subscriptions {wanted.name.rpartition('/')[2]}")["flags"]
        assert flags["--topic"] == wanted.topic
        assert flags.get("--message-filter", "") == wanted.filter
        assert "--enable-message-ordering" in flags
        assert flags["--ack-deadline"] == str(wanted.ack_deadline_seconds)
        assert flags["--message-retention-duration"] == f"{wanted.message_retention_duration.total_seconds():.0f}s"
        assert flags["--expiration-period"] == "never"
        assert flags.get("--dead-letter-topic", "") == wanted.dead_letter_policy.dead_letter_topic
        assert flags["--labels"] == dict(wanted.labels)
    assert {name.rsplit(" ", 1)[0] for name in state} == {
        "iam service-accounts",
        "scheduler jobs",
        "kms keys",
        "projects",
        "redis instances",
        "sql instances",
        "sql databases",
        "sql users",
    }


def test_its_grants_are_config_connectors(cloud: Cloud) -> None:
    fleet = fleet_of()
    granted = sum(len(resource["policy"]) for resource in cloud.state.values())
    config_connector = fleet.model_copy(update={"provisioner": "config-connector"})
    assert granted == len(list(documents(config_connector, kinds=["IAMPolicyMember"])))
    account = cloud.state["iam service-accounts orders-s0@my-project.iam.gserviceaccount.com"]
    assert account["policy"] == [
        "roles/iam.workloadIdentityUser|serviceAccount:my-project.svc.id.goog[writers/orders-s0]"
    ]


def test_a_shard_may_connect_to_its_own_instance_alone(cloud: Cloud) -> None:
    member = "serviceAccount:orders-s1@my-project.iam.gserviceaccount.com"
    roles = ("roles/cloudsql.client", "roles/cloudsql.instanceUser")
    assert cloud.state["projects data-project"]["policy"] == [f"{role}|{member}|orders" for role in roles]
    (condition, _) = (
        flag for call in cloud.changes for flag in call if "projects" in call and flag.startswith("--condition")
    )
    assert condition == (
        "--condition=expression=resource.name == 'projects/data-project/instances/orders' && "
        "resource.service == 'sqladmin.googleapis.com',title=orders"
    )


def test_a_grant_on_the_project_stands_beside_those_with_conditions(cloud: Cloud) -> None:
    fleet = fleet_of(f"operator: {{}}\n{FLEET}")
    assert "create user data-project orders orders-operator@my-project.iam" in cloud.done(fleet)
    member = "serviceAccount:orders-operator@my-project.iam.gserviceaccount.com"
    assert cloud.state["projects my-project"]["policy"] == [
        f"roles/monitoring.viewer|{member}",
        f"roles/pubsub.editor|{member}",
    ]
    assert cloud.done(fleet) == []


def test_an_instance_comes_before_its_replica_its_database_and_its_user(cloud: Cloud) -> None:
    made = [call[1:4] for call in cloud.changes if call[0] == "sql"]
    assert made == [
        ["instances", "create", "orders"],
        ["instances", "create", "replica"],
        ["databases", "create", "db"],
        ["users", "create", "orders-s1@my-project.iam"],
    ]
    assert cloud.state["sql instances replica"]["flags"]["--master-instance-name"] == "orders"
    assert cloud.state["sql users orders-s1@my-project.iam"]["flags"]["--type"] == "cloud_iam_service_account"
    assert "--deletion-protection" in cloud.state["sql instances orders"]["flags"]


@pytest.mark.parametrize(
    ("resource", "change", "name", "wanted"),
    [
        (
            "sql instances orders",
            {"tier": "db-custom-8-32768"},
            "data-project orders",
            "POSTGRES_17|europe-west1|db-custom-2-8192|ENTERPRISE|REGIONAL",
        ),
        (
            "redis instances orders-redis",
            {"size": "5"},
            "orders-redis",
            "STANDARD_HA|1|REDIS_7_2|SERVER_AUTHENTICATION|True|DIRECT_PEERING",
        ),
    ],
    ids=["sql", "redis"],
)
def test_an_instance_that_differs_is_reported_and_left_as_it_is(
    cloud: Cloud, resource: str, change: dict[str, str], name: str, wanted: str
) -> None:
    cloud.change(resource, **change)
    before = cloud.changes
    run = cloud.run(fleet_of())
    assert run.returncode == 0
    assert f"different instance {name}" in run.stdout
    assert f"the file wants {wanted}" in run.stderr
    assert cloud.changes == before


def test_what_can_be_changed_is_changed_and_nothing_else(cloud: Cloud) -> None:
    fleet = fleet_of()
    before = len(cloud.changes)
    cloud.change("pubsub subscriptions orders-s0-g1", ack_deadline="10")
    cloud.change("pubsub subscriptions orders-dead", dead_letter_topic="projects/x/topics/y", max_delivery_attempts="9")
    cloud.change("iam service-accounts orders-s1@my-project.iam.gserviceaccount.com", display_name="mine")
    cloud.change("scheduler jobs orders-nightly", schedule="0 0 * * *")
    assert sorted(cloud.done(fleet)) == [
        "update account orders-s1@my-project.iam.gserviceaccount.com",
        "update job orders-nightly",
        "update subscription orders-dead",
        "update subscription orders-s0-g1",
    ]
    assert len(cloud.changes) == before + 4
    assert cloud.done(fleet) == []


def test_no_topic_is_made_before_its_key_may_be_used(cloud: Cloud) -> None:
    commands = [" ".join(call[:3]) for call in cloud.changes]
    assert commands.index("kms keys add-iam-policy-binding") < commands.index("pubsub topics create")


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({"topic_encryption_key": "projects/other"}, {"--topic-encryption-key"}),
        ({"message_storage_policy_allowed_regions": "europe-west1"}, TOPIC_REGIONS),
        ({"message_storage_policy_allowed_regions": "europe-west4,europe-west1"}, set()),
    ],
    ids=["another key", "another region", "another order"],
)
def test_what_differs_in_a_topic_is_changed(cloud: Cloud, change: dict[str, str], flags: set[str]) -> None:
    cloud.change("pubsub topics data-writes", **change)
    before = len(cloud.changes)
    assert cloud.done(fleet_of()) == (["update topic data-writes"] if flags else [])
    assert {flag.split("=")[0] for call in cloud.changes[before:] for flag in call[4:]} - {"--project"} == flags
    assert cloud.done(fleet_of()) == []


def test_a_topic_keeps_what_the_file_leaves_out(cloud: Cloud) -> None:
    """An organisation's policy sets the regions of a topic that names none."""
    plain = FLEET[: FLEET.index("topic:")] + FLEET[FLEET.index("namespace:") :]
    assert cloud.done(fleet_of(plain)) == []


def test_acked_messages_are_kept_while_the_file_says_so(cloud: Cloud) -> None:
    keeping = fleet_of(FLEET + "\nsubscription: {retain_acked: true}\n")
    changed = [f"update subscription orders-{shard.name}-g{shard.generation}" for shard in keeping.shards]
    assert set(changed) <= set(cloud.done(keeping))
    assert cloud.done(keeping) == []
    assert set(changed) <= set(cloud.done(fleet_of()))
    assert cloud.done(fleet_of()) == []


def test_a_changed_body_updates_its_job(cloud: Cloud) -> None:
    assert cloud.done(fleet_of(FLEET.replace("sweep", "mop"))) == ["update job orders-nightly"]
    flags = cloud.state["scheduler jobs orders-nightly"]["flags"]
    assert json.loads(flags["--message-body"])["order_id"] == "mop"
    assert flags["--attributes"]["partition_key"] == "mop"


CHANNEL = "projects/my-project/notificationChannels/1"
WATCHED = FLEET.replace("terraform", "gcloud").replace("key: order_id,", "key: order_id, on_poison: park,")


def watched(more: str = "dashboard: true", text: str = WATCHED) -> Fleet:
    return fleet_of(f"{text}\nmonitoring: {{stack: cloud-monitoring, {more}}}\n")


@pytest.mark.proof
def test_what_watches_the_fleet_is_made_once_and_updated_when_the_file_changes(cloud: Cloud) -> None:
    made = cloud.done(watched())
    assert "create metric orders-parked" in made
    assert "create policy orders-consumer/ShardctlBacklog" in made
    assert made[-1] == "create dashboard orders-shards"
    assert cloud.done(watched()) == []
    assert cloud.done(watched("thresholds: {backlog_messages: 5}")) == ["update policy orders-consumer/ShardctlBacklog"]
    (policy,) = (item for item in cloud.state.values() if item.get("displayName", "").endswith("/ShardctlBacklog"))
    assert policy["conditions"][0]["conditionPrometheusQueryLanguage"]["query"].endswith(" > 5")
    cloud.done(watched())
    notified = cloud.done(watched(f"notification_channels: {{critical: [{CHANNEL}]}}"))
    assert "update policy orders-consumer/ShardctlSilent" in notified
    assert "update policy orders-consumer/ShardctlBacklog" not in notified


@pytest.mark.proof
def test_a_metric_and_a_dashboard_that_differ_are_updated(cloud: Cloud) -> None:
    cloud.done(watched())
    other = watched(text=WATCHED.replace("namespace: writers", "namespace: others"))
    updated = cloud.done(other)
    assert {"update metric orders-parked", "update dashboard orders-shards"} <= set(updated)
    assert 'namespace_name="others"' in cloud.state["logging metrics orders-parked"]["filter"]
    assert cloud.done(other) == []


@pytest.mark.proof
def test_two_policies_of_one_name_stop_it(cloud: Cloud) -> None:
    cloud.done(watched())
    state = cloud.state
    (policy,) = (item for item in state.values() if item.get("displayName", "").endswith("/ShardctlBacklog"))
    twin = {**policy, "name": "projects/my-project/alertPolicies/twin"}
    (cloud.folder / "state.json").write_text(json.dumps({**state, f"monitoring policies {twin['name']}": twin}))
    run = cloud.run(watched())
    assert run.returncode == 1
    assert "several alert policies are called orders-consumer/ShardctlBacklog" in run.stderr


@pytest.mark.parametrize(
    ("field", "value", "message", "fix"),
    [
        (
            "message_filter",
            'attributes:a|"b"',
            "its filter is 'attributes:a|\"b\"', the file wants 'hasPrefix",
            "`shardctl rebalance`",
        ),
        (
            "topic",
            "projects/my-project/topics/old",
            "its topic is 'projects/my-project/topics/old'",
            "undo the edit of `topic`",
        ),
        (
            "topic",
            "_deleted-topic_",
            "its topic was deleted, the file wants 'projects/my-project/topics/",
            "then delete the subscr",
        ),
    ],
)
def test_what_pubsub_cant_change_stops_it_with_the_safe_way(
    cloud: Cloud, field: str, value: str, message: str, fix: str
) -> None:
    fleet = fleet_of()
    before = cloud.changes
    cloud.change("pubsub subscriptions orders-s0-g1", **{field: value})
    run = cloud.run(fleet)
    assert run.returncode == 1
    assert message in run.stderr
    assert fix in " ".join(run.stderr.split())
    assert cloud.changes == before


def test_a_failure_of_gcloud_stops_it(cloud: Cloud) -> None:
    (cloud.folder / "bin" / "gcloud").write_text("#!/bin/sh\necho 'no permission' >&2\nexit 1\n")
    run = cloud.run(fleet_of())
    assert run.returncode == 1
    assert "no permission" in run.stderr


HOSTILE = "a'b\"c`touch PWNED`$(touch PWNED)\\ \n; touch PWNED # & | > x , ^ ${PATH} %s"


def test_no_value_breaks_out_of_its_quotes(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    fleet = fleet_of()
    schedule = fleet.schedules[0].model_copy(
        update={"body": {"order_id": HOSTILE.replace("\n", ""), "note": HOSTILE}, "key": HOSTILE.replace("\n", "")}
    )
    attributes = fleet.routing.attributes.model_copy(update={"slot": "s'l$(touch,PWNED)"})
    fleet = fleet.model_copy(
        update={"schedules": (schedule,), "routing": fleet.routing.model_copy(update={"attributes": attributes})}
    )
    cloud.done(fleet)
    assert not list(cloud.folder.glob("**/PWNED"))
    flags = cloud.state["scheduler jobs orders-nightly"]["flags"]
    (job,) = gcloud.cloud(fleet).jobs
    assert flags["--message-body"].encode() == job.data
    assert flags["--attributes"] == dict(job.attributes)
    assert cloud.done(fleet) == []


def test_an_attribute_that_gcloud_cant_express_is_refused() -> None:
    fleet = fleet_of()
    attributes = fleet.routing.attributes.model_copy(update={"slot": "a=b"})
    with pytest.raises(UsageError, match="gcloud accepts no name"):
        gcloud.text(fleet.model_copy(update={"routing": fleet.routing.model_copy(update={"attributes": attributes})}))


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox"])
def test_shells_read_it(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} on the PATH")
    script = tmp_path / "script.sh"
    script.write_text(gcloud.text(fleet_of()))
    command = [shell, "sh"] if shell == "busybox" else [shell]
    subprocess.run([*command, "-n", script], check=True)


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck on the PATH")
    script = tmp_path / "script.sh"
    script.write_text(gcloud.text(fleet_of()))
    subprocess.run(["shellcheck", "--severity=warning", "--shell=sh", script], check=True)


def test_it_is_the_same_each_time_and_has_only_functions_before_its_calls() -> None:
    assert gcloud.text(fleet_of()) == gcloud.text(fleet_of())
    assert gcloud.text(fleet_of()).startswith((built_in() / "gcloud.sh").read_text())

"""What `load` refuses, and how it says so. Each case is reported with file, line, path, fault and fix."""

import json
from datetime import timedelta

import jsonschema
import pytest
import yaml
from fleets import HEAD, TYPE, fleet, text

from shardctl.fleet import scaffold, spec, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec_errors import MAX_FAULTS_SHOWN, SpecError

GOOD = text(["0-1023"])


def refused(body):
    with pytest.raises(SpecError) as error:
        fleet_from(yamlfile.parse(body, "f.yaml"))
    return str(error.value)


def with_shard(*fields):
    return HEAD + "message_types:\n" + TYPE.format(name="a") + "shards:\n  -\n" + "".join(f"    {f}\n" for f in fields)


def with_top(line):
    return line + "\n" + GOOD


def with_replaced(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


KEY = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/writes"
SLOTS = 'slots: "0-1023"'


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        pytest.param("", "(the whole file)", "holds no settings", id="empty"),
        pytest.param("- a", "(the whole file)", "holds no settings", id="list-at-top"),
        pytest.param("just words", "(the whole file)", "holds no settings", id="text-at-top"),
        pytest.param(with_top("shard: []"), "shard", "Did you mean shards?", id="unknown-field"),
        pytest.param(with_top("consumer: {batch_max_row: 1}"), "consumer.batch_max_row", "batch_max_rows", id="nested"),
        pytest.param(
            with_replaced("key: id", "keys: id"), "message_types.a.keys", "Did you mean key?", id="unknown-in-dict"
        ),
        pytest.param(with_replaced("project: my-project\n", ""), "project", "is missing. Fix: add it", id="missing"),
        pytest.param(with_shard("name: s0"), "shards[0].slots", "is missing", id="no-slots"),
        pytest.param(with_shard("name: s0", "slots: 1024"), "shards[0].slots", "from 0 to 1023", id="beyond"),
        pytest.param(with_shard("name: s0", "slots: 5-3"), "shards[0].slots", "runs backwards", id="backwards"),
        pytest.param(with_shard("name: s0", 'slots: "0-341,341"'), "shards[0].slots", "slot twice", id="slot-twice"),
        pytest.param(with_shard("name: s0", 'slots: "010"'), "shards[0].slots", "neither a slot", id="octal-text"),
        pytest.param(with_shard("name: s0", "slots: -1"), "shards[0].slots", "neither a slot", id="negative"),
        pytest.param(with_shard("name: s0", "slots: 1.5"), "shards[0].slots", "a number or ranges", id="float"),
        pytest.param(with_shard("name: s0", "slots: true"), "shards[0].slots", "a number or ranges", id="bool"),
        pytest.param(with_shard("name: s0", "slots: [1, 2]"), "shards[0].slots", "a number or ranges", id="list"),
        pytest.param(with_shard("name: s0", "slots:"), "shards[0].slots", "a number or ranges", id="nothing"),
        pytest.param(with_shard("name: s0", "slots: 0-99999999999999999999"), "shards[0].slots", "65535", id="huge"),
        pytest.param(with_shard("name: s0", "slots: 999999999999"), "shards[0].slots", "65535", id="huge-number"),
        pytest.param(with_shard("name: Shard", SLOTS), "shards[0].name", "a Kubernetes name", id="capital"),
        pytest.param(with_shard("name: s0-", SLOTS), "shards[0].name", "a Kubernetes name", id="trailing-dash"),
        pytest.param(with_shard('name: "s0\\n"', SLOTS), "shards[0].name", "a Kubernetes name", id="newline"),
        pytest.param(with_shard("name: 's\"0'", SLOTS), "shards[0].name", "a Kubernetes name", id="quote"),
        pytest.param(with_shard("name: s🙂", SLOTS), "shards[0].name", "a Kubernetes name", id="emoji"),
        pytest.param(with_shard(f"name: {'s' * 60}", SLOTS), "shards[0].name", "has 60 characters", id="long-name"),
        pytest.param(with_shard("name: on", SLOTS), "shards[0].name", 'write "on" in quotes', id="name-on"),
        pytest.param(with_shard("name: 7", SLOTS), "shards[0].name", 'write "7" in quotes', id="name-7"),
        pytest.param(with_shard("name:", SLOTS), "shards[0].name", "text is wanted, not empty", id="name-empty"),
        pytest.param(with_shard("name: s0", SLOTS, "types: [zz]"), "shards[0].types", "isn't among", id="type"),
        pytest.param(with_shard("name: s0", SLOTS, "types: a"), "shards[0].types", "a list is wanted", id="no-list"),
        pytest.param(
            with_shard("name: s0", SLOTS, "types: [a]", "except_types: [a]"), "shards[0]", "exclude", id="both-types"
        ),
        pytest.param(with_shard("name: s0", SLOTS, "types: [a, a]"), "shards[0]", "named twice", id="type-twice"),
        pytest.param(with_shard("name: s0", SLOTS, "generation: 0"), "shards[0].generation", "1, and is 0", id="gen-0"),
        pytest.param(text(["0-600", "600-1023"]), "shards[1].slots", "also belong to shard 's0'", id="overlap"),
        pytest.param(text(["0-600", "700-1023"]), "shards", "no shard owns slots 601-699", id="gap"),
        pytest.param(
            text(["0-511", "512-1023"]).replace("name: s1", "name: s0"),
            "shards[1].name",
            "also the name",
            id="same-name",
        ),
        pytest.param(HEAD + "message_types: {}\nshards: []", "shards", "at least 1", id="no-shards"),
        pytest.param(HEAD + "message_types: {}\nshards: {}", "shards", "a list is wanted", id="shards-mapping"),
        pytest.param(with_top("topic: goog-x"), "topic", "a Pub/Sub id", id="goog-topic"),
        pytest.param(with_top("topic: a"), "topic", "a Pub/Sub id", id="short-topic"),
        pytest.param(with_top("topic: a b c"), "topic", "a Pub/Sub id", id="blank-topic"),
        pytest.param(with_top("topic: 2026"), "topic", 'write "2026" in quotes', id="number-topic"),
        pytest.param(with_top("topic: [a]"), "topic", "a mapping of fields is wanted", id="list-topic"),
        pytest.param(with_top("topic: {nam: abc}"), "topic.nam", "Did you mean name?", id="topic-unknown-field"),
        pytest.param(with_top("topic: {kms_key: k}"), "topic.kms_key", "a Cloud KMS key", id="kms-short"),
        pytest.param(
            with_top(f"topic: {{kms_key: {KEY}/cryptoKeyVersions/1}}"), "topic.kms_key", "KMS", id="kms-version"
        ),
        pytest.param(with_top(f"topic: {{kms_key: {KEY}}}"), "topic.kms_key", "set project_number", id="kms-number"),
        pytest.param(with_top("topic: {allowed_regions: []}"), "topic.allowed_regions", "at least 1", id="no-regions"),
        pytest.param(
            with_top("topic: {allowed_regions: [eu]}"), "topic.allowed_regions[0]", "region", id="multi-region"
        ),
        pytest.param(
            with_top("topic: {allowed_regions: [us-east1, us-east1]}"), "topic", "named twice", id="region-twice"
        ),
        pytest.param(
            with_top("topic: {enforce_in_transit: true}"), "topic", "needs allowed_regions", id="transit-anywhere"
        ),
        pytest.param(with_replaced("my-project", "My_Project"), "project", "project id", id="project"),
        pytest.param(with_replaced("consumer:1.0", "consumer:latest"), "image", "other than 'latest'", id="latest"),
        pytest.param(with_replaced("consumer:1.0", "consumer"), "image", "an image with a tag", id="untagged"),
        pytest.param(with_replaced("consumer:1.0", "consumer:é"), "image", "an image with a tag", id="accented-tag"),
        pytest.param(with_top("namespace: A"), "namespace", "a Kubernetes name", id="namespace"),
        pytest.param(with_replaced("slot_bits: 10", "slot_bits: 17"), "routing.slot_bits", "16, and is 17", id="bits"),
        pytest.param(with_replaced("slot_bits: 10", "slot_bits: true"), "routing.slot_bits", "is True", id="bits-bool"),
        pytest.param(with_replaced("slot_bits: 10", 'slot_bits: "9"'), "routing.slot_bits", "is '9'", id="bits-text"),
        pytest.param(with_replaced("slot_bits: 10", "slot_bits: .nan"), "routing.slot_bits", "nan", id="nan"),
        pytest.param(with_replaced("topic_bits: 0", "topic_bits: -1"), "routing.topic_bits", "-1", id="minus"),
        pytest.param(
            with_replaced("topic_bits: 0", "topic_bits: 0, attributes: ce"),
            "routing.attributes",
            "presets",
            id="preset",
        ),
        pytest.param(
            with_replaced("topic_bits: 0", "topic_bits: 0, attributes: {slot: data}"),
            "routing.attributes",
            "takes 'data' for itself",
            id="taken-attribute",
        ),
        pytest.param(
            with_replaced("topic_bits: 0", "topic_bits: 0, attributes: {slot: operation}"),
            "routing.attributes",
            "share one attribute",
            id="shared-attribute",
        ),
        pytest.param(with_top("subscription: {retention: 5}"), "subscription.retention", "30s, 10m", id="no-unit"),
        pytest.param(
            with_top("subscription: {retention: 90d}"), "subscription.retention", "10m and 31d", id="too-long"
        ),
        pytest.param(with_top("subscription: {retention: \u0667d}"), "subscription.retention", "30s, 10m", id="digits"),
        pytest.param(with_top("subscription: []"), "subscription", "a mapping of fields is wanted", id="mapping"),
        pytest.param(with_top("local: {database: mysql}"), "local.database", "isn't one of", id="choice"),
        pytest.param(with_top("autoscaling: {min: 5, max: 2}"), "autoscaling", "min 5 exceeds max 2", id="min-max"),
        pytest.param(with_replaced("key: id", "key: no_id"), "message_types.a", "isn't among columns", id="key-column"),
        pytest.param(with_replaced("id: text", "id: json"), "message_types.a", "can't index", id="json-key"),
        pytest.param(
            with_replaced("id: text", "id: txt"), "message_types.a.columns.id", "mean text?", id="column-type"
        ),
        pytest.param(with_replaced("id: text", "id: int"), "message_types.a.columns.id", "write integer", id="int"),
        pytest.param(with_replaced("id: text", "id: UUID"), "message_types.a.columns.id", "write uuid", id="uuid"),
        pytest.param(
            with_replaced("id: text", "id: Char (9)"), "message_types.a.columns.id", "write varchar(9)", id="char"
        ),
        pytest.param(
            with_replaced("id: text", "id: varchar(0)"),
            "message_types.a.columns.id",
            "1 to 16,383 characters",
            id="varchar-0",
        ),
        pytest.param(with_replaced("id: text", "id: varchar(651)"), "message_types.a", "index 650", id="varchar-key"),
        pytest.param(with_replaced("id: text", "id: bytes"), "message_types.a", "bytes, which", id="bytes-key"),
        pytest.param(with_replaced("id: text", "id: blob"), "message_types.a.columns.id", "write bytes", id="blob"),
        pytest.param(
            with_replaced("id: text", "id: varbinary(16)"), "message_types.a.columns.id", "write bytes", id="varbinary"
        ),
        pytest.param(with_replaced("id: text", "id: Date"), "message_types.a.columns.id", "write date", id="date"),
        pytest.param(
            with_replaced("id: text", "id: datetime"), "message_types.a.columns.id", "write timestamp", id="datetime"
        ),
        pytest.param(
            with_replaced("id: text", "id: double precision"),
            "message_types.a.columns.id",
            "write number",
            id="two-words",
        ),
        pytest.param(
            with_replaced("id: text", "id: time"),
            "message_types.a.columns.id",
            "times of day and intervals have none",
            id="time",
        ),
        pytest.param(
            with_replaced("id: text", "id: bigserial"), "message_types.a.columns.id", "write bigint", id="bigserial"
        ),
        pytest.param(
            with_replaced("id: text", 'id: "DECIMAL(9, 2)"'),
            "message_types.a.columns.id",
            "write numeric(9,2)",
            id="digits",
        ),
        pytest.param(
            with_replaced("id: text", "id: int(11) unsigned"),
            "message_types.a.columns.id",
            "write bigint",
            id="unsigned",
        ),
        pytest.param(with_replaced("id: text", "id: jsonb"), "message_types.a.columns.id", "write json", id="jsonb"),
        pytest.param(with_replaced("fleet: orders", "fleeet: orders"), "fleeet", "Did you mean fleet?", id="misspelt"),
        pytest.param(with_top("project_number: 1" + "2" * 900 + ".5"), "project_number", "2222… as", id="long-number"),
        pytest.param(with_replaced("  a:\n", "  a b:\n"), "message_types.a b", "a message type", id="type-name"),
        pytest.param(with_replaced("a_rows", "a;drop"), "message_types.a.table", "a table name", id="table-name"),
        pytest.param(
            with_replaced("fleet: orders", "fleet: orders\nconsumer: {inbox_retention: 7d}"),
            "consumer.inbox_retention",
            "make it 8d or more",
            id="inbox-retention",
        ),
        pytest.param(
            with_replaced("    key: id", "    sink: my.sinks:factory\n    key: id"),
            "message_types.a",
            "sink takes the place of table",
            id="sink-and-table",
        ),
        pytest.param(with_replaced("fleet: orders", "fleet: goog"), "fleet", "begin with 'goog'", id="goog-fleet"),
    ],
)
def test_refusals(body, path, says):
    message = refused(body)
    assert message.startswith("f.yaml")
    assert f": {path}: " in message
    assert says in message


def test_the_line_is_that_of_the_value():
    assert refused(with_top("\n\ntopic: a")).startswith("f.yaml:3: topic: ")


def test_many_faults_are_shown_up_to_a_bound():
    lines = refused(text(["9999"] * 50)).splitlines()
    assert len(lines) == MAX_FAULTS_SHOWN + 1
    assert lines[-1] == "f.yaml: … and 30 more."


def test_a_message_type_may_be_called_like_a_field():
    assert "fields here: table, key" in refused(
        GOOD.replace("  a:\n", "  time_bucket:\n").replace("key: id", "keys: id", 1)
    )


def test_a_shard_lays_its_own_settings_over_the_fleets():
    fleet_read = fleet(
        [["slots: 0-511", "consumer: {concurrency: 7}"], "512-1023"], more="consumer: {concurrency: 3, lease: 30s}\n"
    )
    first, second = (shard.consumer for shard in fleet_read.shards)
    assert (first.concurrency, first.lease) == (7, timedelta(seconds=30))
    assert (second.concurrency, second.lease) == (3, timedelta(seconds=30))


@pytest.mark.parametrize(
    ("shared", "own", "read"),
    [
        (
            "workload: {kind: statefulset, storage: {size: 10Gi, storage_class: fast}}",
            "workload: {storage: {size: 50Gi}}",
            lambda shard: (shard.workload.storage.size, shard.workload.storage.storage_class) == ("50Gi", "fast"),
        ),
        (
            "autoscaling: {kind: keda, keda: {polling: 10s, cooldown: 1h}}",
            "autoscaling: {keda: {polling: 20s}}",
            lambda shard: (
                (shard.autoscaling.keda.polling, shard.autoscaling.keda.cooldown)
                == (timedelta(seconds=20), timedelta(hours=1))
            ),
        ),
        (
            "network_policy: {database: {ports: [5432], cidrs: [10.30.0.0/24]}, redis: {ports: [6380]}}",
            "network_policy: {database: {ports: [3307]}}",
            lambda shard: (shard.network_policy.database.cidrs, shard.network_policy.redis.ports) == ((), (6380,)),
        ),
    ],
    ids=["a disk", "keda", "ports and addresses are one value"],
)
def test_a_shard_names_only_what_differs(shared, own, read):
    """A disk of another storage class can't be changed later."""
    assert read(fleet([["slots: 0-1023", own]], more=f"{shared}\n").shards[0])


@pytest.mark.parametrize("name", spec.SHARD_OVERRIDES)
@pytest.mark.parametrize("own", ["", "{name}: ", "{name}: {{}}"], ids=["left out", "empty", "no difference"])
def test_a_shard_has_the_fleets_setting_that_it_leaves_out(name, own):
    settings = {
        "consumer": "{concurrency: 3}",
        "autoscaling": "{min: 3}",
        "resources": "{cpu: 300m}",
        "workload": "statefulset",
        "network_policy": "{from_namespaces: [three]}",
        "leader": "redis",
    }
    made = fleet([["slots: 0-1023", own.format(name=name)]], more=f"{name}: {settings[name]}\n")
    assert getattr(made.shards[0], name) == getattr(made, name) != spec.Fleet.model_fields[name].default


def test_a_fault_of_a_setting_is_shown_once_however_many_shards_have_it():
    assert len(refused(text(["0-511", "512-1023"], more="consumer: {concurrency: 0}\n")).splitlines()) == 1


def test_unknown_shard_names_list_the_known():
    with pytest.raises(spec.UsageError, match="Shards: s0"):
        fleet(["0-1023"]).shard("nope")


SCHEMA = spec.json_schema()


@pytest.mark.slow
def test_the_json_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    json.dumps(SCHEMA)


@pytest.mark.slow
def test_keys_that_begin_with_x_are_the_users_own():
    own = "x-replicas: &replicas {min: 3, max: 4}\nautoscaling: *replicas\n" + GOOD
    assert fleet_from(yamlfile.parse(own)).shards[0].autoscaling.min == 3
    jsonschema.validate(yaml.safe_load(own), SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("body", [GOOD, scaffold.text(3), scaffold.text(200)], ids=["small", "three", "many"])
def test_the_json_schema_accepts_what_loads(body):
    jsonschema.validate(yaml.safe_load(body), SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        with_top("shard: []"),
        with_replaced("key: id", "keys: id"),
        with_shard("name: s0"),
        with_shard("name: S0", SLOTS),
        with_shard("name: s0", "slots: five"),
        with_shard("name: s0", "slots: -1"),
        with_top("local: {database: mysql}"),
        with_replaced("slot_bits: 10", "slot_bits: 17"),
        with_replaced("consumer:1.0", "consumer:latest"),
        with_replaced("topic_bits: 0", "topic_bits: 0, attributes: {slots: x}"),
    ],
)
def test_the_json_schema_refuses(body):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(body), SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [*range(1, 13), 31, 33, 47, 64, 100, 255, 256])
def test_init_writes_a_fleet(shards):
    from shardctl.fleet import topology

    fleet_read = fleet_from(yamlfile.parse(scaffold.text(shards)))
    assert len(fleet_read.shards) == shards
    if shards <= 64:
        assert topology.strays(fleet_read)[0].blind == ()
    assert max(len(shard.slots) for shard in fleet_read.shards) <= 1.5 * 1024 / shards


@pytest.mark.parametrize(
    ("written", "column"),
    [
        ("numeric(10,2)", "numeric(10,2)"),
        ("numeric(10, 2)", "numeric(10,2)"),
        ("numeric(65,30)", "numeric(65,30)"),
        ("numeric(5)", "numeric(5,0)"),
    ],
)
def test_a_decimals_digits_can_be_stated(written, column):
    kind = fleet_from(yamlfile.parse(text_with_column(written))).message_types["a"]
    assert (kind.columns["amount"], kind.types["amount"]) == (column, "decimal")
    assert MessageType.model_validate_json(kind.model_dump_json()) == kind


@pytest.mark.parametrize("written", ["numeric(66,2)", "numeric(10,11)", "numeric(40,31)", "numeric(0,0)"])
def test_digits_that_no_database_has_are_refused(written):
    with pytest.raises(SpecError, match="a precision is 1 to 65 digits"):
        fleet_from(yamlfile.parse(text_with_column(written)))


def text_with_column(written):
    return GOOD.replace("amount: bigint", f'amount: "{written}"')

"""The promise itself: whatever the layout, each message reaches exactly one shard, or strays."""

import random

import pytest
from filter_eval import parse
from fleets import fleet, text
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from shardctl.fleet import coverage, scaffold, topology, yamlfile
from shardctl.fleet.advice import warnings
from shardctl.fleet.filters import MAX_FILTER_BYTES, shard_filter
from shardctl.fleet.keyspace import SlotSet, digits_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError, path_text

TYPES = ("a", "b", "c")


@st.composite
def layouts(draw):
    """A fleet that covers every slot and type: slots cut into shards, some of them cut again by type."""
    bits = draw(st.integers(2, 6))
    topic_bits = draw(st.integers(0, min(2, bits - 1)))
    shards = draw(st.integers(1, 5))
    style = draw(st.sampled_from(["ranges", "scattered"]))
    seed = draw(st.integers(0, 10_000))
    chance = random.Random(seed)
    count = 1 << bits
    if style == "ranges":
        cuts = sorted(chance.sample(range(1, count), min(shards, count) - 1))
        groups = [range(first, end) for first, end in zip([0, *cuts], [*cuts, count], strict=True)]
    else:
        groups = [[] for _ in range(shards)]
        for slot in range(count):
            groups[chance.randrange(shards)].append(slot)
    lines = []
    everything = draw(st.booleans())  # whether some shard takes types that the file doesn't name
    for group in filter(len, groups):
        slots = str(SlotSet.of(group))
        split = draw(st.sampled_from(["whole", "one", "two"])) if everything else "all named"
        if split == "whole":
            lines.append([f'slots: "{slots}"'])
        elif split == "all named":
            lines += [[f'slots: "{slots}"', "types: [a, b]"], [f'slots: "{slots}"', "types: [c]"]]
        else:
            taken = ["a"] if split == "one" else ["a", "c"]
            lines.append([f'slots: "{slots}"', f"except_types: [{', '.join(taken)}]"])
            lines += [[f'slots: "{slots}"', f"types: [{name}]"] for name in taken]
    return yamlfile.parse(text(lines, slot_bits=bits, topic_bits=topic_bits, types=TYPES))


def receivers(fleet, topic, attributes):
    """The ids of the subscriptions on a topic that take a message, of shards and of strays."""
    shards = [
        sub.id
        for shard in fleet.shards
        for sub in topology.subscriptions(fleet, shard)
        if sub.topic == topic and parse(sub.filter)(attributes)
    ]
    strays = [s.id for s in topology.strays(fleet) if s.topic == topic and parse(s.filter)(attributes)]
    return shards, strays


def loaded(layout):
    """The fleet, or None where a filter had to be refused as too long."""
    try:
        return fleet_from(layout)
    except SpecError as error:
        if all("allows 256" in fault.fault for fault in error.faults):
            return None
        raise


@examples(1.5)
@given(layouts())
def test_each_slot_and_type_reaches_exactly_one_shard(layout):
    fleet_read = loaded(layout)
    if fleet_read is None:
        return
    bits = fleet_read.routing.slot_bits
    for slot in range(1 << bits):
        topic = topology.topic_of(fleet_read, slot)
        for name in (*TYPES, "unknown", None):
            attributes = {"slot": digits_of(slot, bits)} | ({"message_type": name} if name else {})
            shards, strays = receivers(fleet_read, topic, attributes)
            owners = [s for s in fleet_read.shards if slot in s.slots and s.takes(name or "")]
            assert len(shards) == len(owners) <= 1
            assert len(shards) + len(strays) == 1


@pytest.mark.slow
@examples(1.5)
@given(layouts(), st.integers(0, 1 << 30))
def test_nothing_falls_between_shards_and_strays(layout, seed):
    """Whatever the attributes: exactly one takes it, except after the beginnings that `blind` names."""
    fleet_read = loaded(layout)
    if fleet_read is None:
        return
    chance = random.Random(seed)
    complete = {
        topic: all(
            topology._filter_on(fleet_read, shard, topic).padded
            for shard in fleet_read.shards
            if (shard.slots & topic.slots).ranges
        )
        for topic in topology.topics(fleet_read)
    }
    for _ in range(20):
        attributes = wild_attributes(chance, fleet_read.routing.slot_bits)
        for topic, strays in zip(topology.topics(fleet_read), topology.strays(fleet_read), strict=True):
            shards, stray = receivers(fleet_read, topic, attributes)
            readers = len(shards) + len(stray)
            assert readers == 1 or not complete[topic]
            slot = attributes.get("slot")
            assert readers >= 1 or any(slot_breaks_off_after(slot, beginning) for beginning in strays.blind)


def wild_attributes(chance, bits):
    digits = "".join(chance.choices("01", k=chance.randrange(bits + 3)))
    slot = chance.choice([None, digits, digits, digits + chance.choice(["2", "x", " ", "\n", "\u00e9"])])
    name = chance.choice([*TYPES, "unknown", "", None])
    return {key: value for key, value in (("slot", slot), ("message_type", name)) if value is not None}


def slot_breaks_off_after(slot, beginning):
    return slot is not None and slot.startswith(beginning) and not slot[len(beginning) :].startswith(("0", "1"))


@pytest.mark.parametrize("shards", ["0-351 352-671 672-1023", "0-1023", "0-127 128-1023"])
def test_plain_layouts_are_never_blind(shards):
    fleet_read = fleet(shards.split())
    assert [stray.blind for stray in topology.strays(fleet_read)] == [()]
    assert (
        topology.strays(fleet_read)[0].filter
        == 'NOT (hasPrefix(attributes.slot,"0") OR hasPrefix(attributes.slot,"1"))'
    )


def test_a_layout_without_room_reports_what_its_filters_miss():
    fleet_read = fleet(["0-335", "336-687", "688-1023"])
    (stray,) = topology.strays(fleet_read)
    assert stray.blind
    assert len(stray.filter.encode()) <= MAX_FILTER_BYTES
    for beginning in stray.blind:
        assert set(beginning) <= {"0", "1"}


def faults(shards, **settings_):
    with pytest.raises(SpecError) as error:
        fleet(shards, **settings_)
    return [f"{path_text(fault.path)}: {fault.fault} Fix: {fault.fix}" for fault in error.value.faults]


def test_the_proof_counts_what_it_checked():
    proof, gaps = coverage.prove(fleet(["0-511", "512-1023"]))
    assert (proof.pairs, proof.types, proof.unrouted, gaps) == (3072, ("a", "b", coverage.OTHER_TYPES), (), ())


def test_types_that_nobody_takes_go_to_strays():
    fleet_read = fleet([["slots: 0-1023", "types: [a, b]"]])
    assert coverage.prove(fleet_read)[0].unrouted == (coverage.OTHER_TYPES,)
    assert coverage.prove(fleet_read)[0].pairs == 2048


def test_a_gap_is_reported_once():
    assert faults(["0-99", "200-1023"]) == [
        "shards: no shard owns slots 100-199; their messages would be lost. Fix: add them to a shard."
    ]


def test_an_overlap_names_both():
    assert faults(["0-599", "512-1023"]) == [
        "shards[1].slots: slots 512-599 also belong to shard 's0'. Fix: give slots 512-599 to one of the two."
    ]


@pytest.mark.parametrize("order", [1, -1], ids=["whole-first", "typed-first"])
def test_an_overlap_by_type_offers_except_types(order):
    messages = faults([["slots: 0-1023"], ["slots: 0-1023", "types: [b]"]][::order])
    whole = "s0" if order == 1 else "s1"
    assert len(messages) == 1
    assert messages[0].endswith(f"Fix: add except_types: [b] to {whole}.")
    assert "of type 'b'" in messages[0]


def test_a_gap_by_type_names_the_type():
    assert faults([["slots: 0-1023", "types: [a]"]]) == [
        "shards: no shard owns slots 0-1023 of type 'b'; their messages would be lost. Fix: add them to a shard."
    ]


@pytest.mark.parametrize(
    "slots",
    ["1-340,345-700", "0-100,201-300,333-444", "5-1018", "1,3,5,7,9,11,13"],
)
def test_a_filter_too_long_names_slots_that_fit(slots):
    rest = str(SlotSet.all(10) - SlotSet.parse(slots))
    with pytest.raises(SpecError) as error:
        fleet([[f'slots: "{slots}"', "types: [a, b]"], [f'slots: "{slots}"', "except_types: [a, b]"], rest])
    offers = [f for f in error.value.faults if "allows 256" in f.fault]
    assert offers
    of_shard = [{"types": ["a", "b"]}, {"except_types": ["a", "b"]}, {}]
    for fault in offers:
        offer = fault.fix.removeprefix("the nearest slots that fit: ").removesuffix(".")
        assert len(shard_filter(SlotSet.parse(offer), 10, **of_shard[fault.path[1]])) <= MAX_FILTER_BYTES


def test_the_delivery_factor_counts_subscriptions_of_a_topic():
    assert topology.delivery_factor(fleet(["0-511", "512-1023"])) == 3
    assert topology.delivery_factor(fleet(["0-511", "512-1023"], topic_bits=1)) == 2


def test_shards_on_several_topics_have_a_subscription_on_each():
    fleet_read = fleet(["0-767", "768-1023"], topic_bits=1)
    ids = [sub.id for shard in fleet_read.shards for sub in topology.subscriptions(fleet_read, shard)]
    assert ids == ["orders-s0-g1-t0", "orders-s0-g1-t1", "orders-s1-g1-t1"]


@pytest.mark.slow
def test_a_thousand_shards_load_soon():
    fleet_read = fleet([str(slot) for slot in range(1024)])
    assert len(fleet_read.shards) == 1024


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("shardctl_inbox", "shardctl's own tables"),
        ("pg_catalog.rows", "keeps its own tables"),
        ("information_schema.rows", "keeps its own tables"),
        ("MySQL.rows", "keeps its own tables"),
        ("pg_class", "keeps its own tables"),
        ("b" * 64, "a name of 64 bytes"),
        ("billing." + "b" * 64, "a name of 64 bytes"),
    ],
)
def test_a_table_that_a_database_would_not_make_as_named_is_refused(table, says):
    body = text(["0-1023"]).replace("table: a_rows", f"table: {table}")
    with pytest.raises(SpecError, match=says) as error:
        fleet_from(yamlfile.parse(body))
    assert len(error.value.faults) == 1


def test_names_that_differ_in_case_alone_are_refused():
    two = scaffold.text(2)
    for name, other in (("      tier: text", "      Email: text"), ("      tier: text", "      SLOT: text")):
        with pytest.raises(SpecError, match="differ in case alone, and are one column"):
            fleet_from(yamlfile.parse(two.replace(name, other)))
    with pytest.raises(SpecError, match="differ in case alone, and are one table"):
        fleet_from(yamlfile.parse(two.replace("table: customers", "table: Orders")))


def test_names_of_63_bytes_are_taken():
    long = "b" * 63
    assert fleet_from(yamlfile.parse(text(["0-1023"]).replace("table: a_rows", f"table: {long}.{long}")))


def test_several_regions_are_a_risk_for_the_order():
    single, several = (
        fleet(["0-1023"], more=f"topic: {{allowed_regions: [{regions}]}}\n")
        for regions in ("europe-west1", "europe-west1, europe-west4")
    )
    assert warnings(single) == ()
    (warning,) = warnings(several)
    assert "only within one" in warning


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("europe-west1-pubsub.googleapis.com", False),
        ("pubsub.europe-west4.rep.googleapis.com:443", False),
        ("us-east1-pubsub.googleapis.com", True),
        ("pubsub.us-east1.rep.googleapis.com", True),
        ("pubsub-acme.p.googleapis.com", False),
    ],
)
def test_an_endpoint_of_one_region_keeps_the_order_where_that_region_is_allowed(endpoint, warned):
    regional = fleet(
        ["0-1023"], more=f"topic: {{allowed_regions: [europe-west1, europe-west4], endpoint: '{endpoint}'}}\n"
    )
    assert ["leads to us-east1" in warning for warning in warnings(regional)] == [True] * warned


@pytest.mark.parametrize(
    "endpoint", ["https://europe-west3-pubsub.googleapis.com", "europe-west3", "a.b:0", "a..b", "A.b/c"]
)
def test_an_endpoint_is_a_host(endpoint):
    with pytest.raises(SpecError, match=r"topic\.endpoint.*a host of Pub/Sub, such as europe-west3"):
        fleet(["0-1023"], more=f"topic: {{endpoint: '{endpoint}'}}\n")


def test_the_api_provisioner_grants_nothing_and_needs_no_project_number():
    key = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/writes"
    assert fleet(["0-1023"], more=f"provisioner: api\ntopic: {{kms_key: {key}}}\n").topic.kms_key == key


def test_a_topic_is_named_in_short_or_with_its_settings():
    short, long = (fleet(["0-1023"], more=f"topic: {topic}\n") for topic in ("writes", "{name: writes}"))
    assert short.topic == long.topic

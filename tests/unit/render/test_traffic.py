"""Every form's rules, read as its router reads them: each slot's requests go to the pods of exactly one shard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from shardctl.errors import UsageError
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet, digits_of
from shardctl.fleet.load import fleet_from, load_fleet
from shardctl.fleet.settings.traffic import GatewayRef, Traffic
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse
from shardctl.render import documents, warnings
from shardctl.render.traffic import MATCHES_A_ROUTE, PREFIXES_A_PATTERN, slot_patterns

CASES = sorted((Path(__file__).parents[2] / "golden" / "cases").glob("*/shards.yaml"))
KINDS = ["Service", "DestinationRule", "VirtualService", "KongUpstreamPolicy", "Ingress", "HTTPRoute"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HEAD = """
fleet: orders
project: my-project
namespace: writers
image: example.com/consumer:1.0.0
routing: {slot_bits: 4}
message_types:
  a: {table: a, key: id, columns: {id: text}}
  b: {table: b, key: id, columns: {id: text}}
"""
SHARDS = """
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""


def fleet_of(more: str, shards: str = SHARDS) -> Fleet:
    return fleet_from(parse(HEAD + more + shards))


def rendered(fleet: Fleet) -> list[dict[str, Any]]:
    manifests = [yaml.load(document.text, LOADER) for document in documents(fleet, kinds=KINDS)]
    return [item for item in manifests if item["spec"].get("clusterIP") != "None"]  # a StatefulSet's own Service


def of_kind(items: Iterable[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in items if item["kind"] == kind}


matcher = cache(re.compile)

# --- the routers ------------------------------------------------------------------------------------------------------
# Each takes the rendered objects, and gives a function from a request's headers to the labels of the pods that get it.

Headers = dict[str, str]
Router = Callable[[Headers], dict[str, str] | None]


def istio(items: list[dict[str, Any]]) -> Router:
    (service,) = [manifest for name, manifest in of_kind(items, "Service").items() if name.endswith("-http")]
    ((name, virtual),) = of_kind(items, "VirtualService").items()
    (rule,) = of_kind(items, "DestinationRule").values()
    subsets = {subset["name"]: subset["labels"] for subset in rule["subsets"]}
    assert rule["host"].startswith(f"{name}.")

    def agrees(match: dict[str, Any], headers: Headers) -> bool:
        for header, wanted in match.get("headers", {}).items():
            given = headers.get(header)
            if given is None:
                return False
            if "regex" in wanted and not matcher(wanted["regex"]).fullmatch(given):
                return False
            if "exact" in wanted and wanted["exact"] != given:
                return False
        return True

    def send(headers: Headers) -> dict[str, str] | None:
        for route in virtual["http"]:  # the first that matches
            if any(agrees(match, headers) for match in route["match"]):
                if "directResponse" in route:
                    assert route["directResponse"]["status"] == 400
                    return None
                (to,) = route["route"]
                assert to["destination"]["host"] == rule["host"]
                assert to["destination"]["port"]["number"] == service["ports"][0]["port"]
                return service["selector"] | subsets[to["destination"]["subset"]]
        return None

    return send


def kong(items: list[dict[str, Any]]) -> Router:
    services = of_kind(items, "Service")
    routes = []
    for item in items:
        if item["kind"] == "Ingress":
            prefix = "konghq.com/headers."
            headers = {
                key.removeprefix(prefix): value
                for key, value in item["metadata"]["annotations"].items()
                if key.startswith(prefix)
            }
            for rule in item["spec"]["rules"]:
                (path,) = rule["http"]["paths"]
                routes.append((headers, services[path["backend"]["service"]["name"]]["selector"]))

    def agrees(wanted: str, given: str | None) -> bool:
        if given is None:
            return False
        values = wanted.split(",")
        if values[0].startswith("~*"):
            (pattern,) = values  # Kong reads only a single value as a pattern
            return matcher(pattern[2:]).search(given) is not None
        return given in values

    def send(headers: Headers) -> dict[str, str] | None:
        candidates = [
            (len(asked), pods)
            for asked, pods in routes
            if all(agrees(value, headers.get(name)) for name, value in asked.items())
        ]
        return best(candidates)

    return send


def gateway(items: list[dict[str, Any]]) -> Router:
    services = of_kind(items, "Service")
    asked = []
    for route in of_kind(items, "HTTPRoute").values():
        assert sum(len(rule["matches"]) for rule in route["rules"]) < 128
        for rule in route["rules"]:
            (backend,) = rule["backendRefs"]
            assert backend["port"] == services[backend["name"]]["ports"][0]["port"]
            assert len(rule["matches"]) <= 64
            asked += [(match["headers"], services[backend["name"]]["selector"]) for match in rule["matches"]]

    def agrees(wanted: dict[str, str], headers: Headers) -> bool:
        given = headers.get(wanted["name"])
        if given is None:
            return False
        if wanted["type"] == "RegularExpression":
            return matcher(wanted["value"]).search(given) is not None
        assert wanted["type"] == "Exact"
        return wanted["value"] == given

    def send(headers: Headers) -> dict[str, str] | None:
        return best([(len(match), pods) for match, pods in asked if all(agrees(wanted, headers) for wanted in match)])

    return send


def best(candidates: list[tuple[int, dict[str, str]]]) -> dict[str, str] | None:
    """The most specific match; two of the same rank must agree, for which of them wins is nobody's to say."""
    if not candidates:
        return None
    top = max(rank for rank, _ in candidates)
    pods = [pods for rank, pods in candidates if rank == top]
    assert all(pods_of_rule == pods[0] for pods_of_rule in pods)
    return pods[0]


ROUTERS = {"istio": istio, "kong": kong, "gateway-api": gateway}


# --- each slot's requests reach the one shard -------------------------------------------------------------------------


def steered(fleet: Fleet, form: str, **others: Any) -> Fleet:
    traffic = Traffic(form=form, gateway=GatewayRef(name="public"), **others)  # type: ignore[arg-type]
    return fleet.model_copy(update={"traffic": traffic})


def check_every_slot(fleet: Fleet, form: str) -> None:
    fleet = steered(fleet, form)
    traffic, bits = fleet.traffic, fleet.routing.slot_bits
    send = ROUTERS[form](rendered(fleet))
    for kind in (*topology.known_types(fleet), "of.no/type", None):
        takers = [shard for shard in fleet.shards if shard.takes(kind or "")]
        owners = {slot: shard.name for shard in takers for slot in shard.slots}
        assert len(owners) == sum(len(shard.slots) for shard in takers)
        for slot in range(1 << bits):
            headers = {traffic.slot_header: digits_of(slot, bits)} | ({traffic.type_header: kind} if kind else {})
            pods = send(headers)
            assert (pods and pods["shard"]) == owners.get(slot), headers
            assert pods is None or pods["app"] == f"{fleet.fleet}-consumer"


@pytest.mark.parametrize("form", ROUTERS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_every_slot_of_the_golden_fleets_goes_to_its_one_shard(path: Path, form: str) -> None:
    check_every_slot(load_fleet(path), form)


TYPED = """
shards:
  - {name: s0, slots: "0-4,11", except_types: [a]}
  - {name: s1, slots: "5-10,12-15", except_types: [a]}
  - {name: s2, slots: "0-12", types: [a]}
  - {name: s3, slots: "13-15", types: [a]}
"""
ONLY_TYPED = """
shards:
  - {name: s0, slots: "0-15", types: [a]}
  - {name: s1, slots: "0-9", types: [b]}
  - {name: s2, slots: "10-15", types: [b]}
"""


@pytest.mark.parametrize("form", ROUTERS)
@pytest.mark.parametrize("shards", [TYPED, ONLY_TYPED], ids=["types and others", "types alone"])
def test_a_slot_goes_to_the_shard_of_its_message_type(shards: str, form: str) -> None:
    check_every_slot(fleet_of("", shards), form)


def scattered(bits: int, *slots: SlotSet, **shared: Any) -> Fleet:
    """A fleet of shards whose slots may be too many for Pub/Sub's filters, as they are over many topics together."""
    fleet = fleet_of("")
    shards = (
        fleet.shards[0].model_copy(update={"name": f"s{number}", "slots": shard_slots, **shared})
        for number, shard_slots in enumerate(slots)
    )
    routing = fleet.routing.model_copy(update={"slot_bits": bits})
    return fleet.model_copy(update={"shards": tuple(shards), "routing": routing})


@pytest.mark.parametrize("form", ROUTERS)
@examples(0.25)
@given(owners=st.lists(st.integers(0, 3), min_size=64, max_size=64))
def test_every_slot_goes_to_its_one_shard_however_slots_are_scattered(form: str, owners: list[int]) -> None:
    slots = [SlotSet.of(slot for slot, owner in enumerate(owners) if owner == number) for number in set(owners)]
    check_every_slot(scattered(6, *slots), form)


@pytest.mark.parametrize("form", ROUTERS)
@pytest.mark.parametrize(
    "slot",
    [
        None,
        "",
        "0",
        "010",
        "01010",
        "010x",
        "x0101",
        " 0101",
        "0101 ",
        "5",
        "\u0660\u0661\u0660\u0661",
        "0b01",
        "0101,0101",
        ".*",
    ],
)
def test_what_isnt_a_slot_reaches_no_shard(slot: str | None, form: str) -> None:
    send = ROUTERS[form](rendered(steered(fleet_of(""), form)))
    assert send({} if slot is None else {"x-shard-slot": slot}) is None
    assert send({"x-shard-slot": "0101"}) == {"app": "orders-consumer", "shard": "s0"}


def test_patterns_are_anchored_and_hold_the_filters_prefixes() -> None:
    fleet = fleet_of("", "shards:\n  - {name: s0, slots: '4-7,9'}\n  - {name: s1, slots: '0-3,8,10-15'}\n")
    assert slot_patterns(fleet, fleet.shards[0]) == ("^(01[01]{2}|1001)$",)
    assert slot_patterns(fleet, fleet.shards[1]) == ("^(00[01]{2}|1000|101[01]|11[01]{2})$",)


@pytest.mark.slow
def test_a_shard_of_many_scattered_slots_gets_as_many_routes_as_it_needs() -> None:
    fleet = scattered(10, *(SlotSet.of(range(first, 1024, 2)) for first in (0, 1)), types=("a", "b"))
    patterns = slot_patterns(fleet, fleet.shards[0])
    assert all(pattern.count("|") < PREFIXES_A_PATTERN for pattern in patterns)
    routes = of_kind(rendered(steered(fleet, "gateway-api")), "HTTPRoute")
    assert list(routes) == ["orders-s0-http", "orders-s0-http-2", "orders-s1-http", "orders-s1-http-2"]
    assert len(routes) == 2 * 2 * len(patterns) // MATCHES_A_ROUTE
    check_every_slot(fleet, "gateway-api")


def test_a_shard_without_slots_has_no_route() -> None:
    fleet = fleet_of("")
    emptied = fleet.shards[1].model_copy(update={"slots": SlotSet()})
    fleet = fleet.model_copy(update={"shards": (fleet.shards[0], emptied)})
    for form, kind in {"kong": "Ingress", "gateway-api": "HTTPRoute"}.items():
        assert list(of_kind(rendered(steered(fleet, form)), kind)) == ["orders-s0-http"]
    (virtual,) = of_kind(rendered(steered(fleet, "istio")), "VirtualService").values()
    assert [route["name"] for route in virtual["http"]] == ["s0", "no-slot"]


# --- what is rendered, and what is refused ----------------------------------------------------------------------------


def test_nothing_is_rendered_that_isnt_asked_for() -> None:
    assert rendered(fleet_of("")) == []
    assert rendered(fleet_of("traffic: none\n")) == []


@pytest.mark.parametrize(
    ("form", "kinds"),
    [
        ("services", {"Service"}),
        ("session-affinity", {"Service"}),
        ("istio", {"Service", "DestinationRule", "VirtualService"}),
        ("kong", {"Service", "KongUpstreamPolicy", "Ingress"}),
        ("gateway-api", {"Service", "HTTPRoute"}),
    ],
)
def test_a_form_renders_its_kinds_and_no_others(form: str, kinds: set[str]) -> None:
    assert {item["kind"] for item in rendered(steered(fleet_of(""), form))} == kinds


@pytest.mark.parametrize("form", ["services", "kong", "gateway-api"])
def test_a_service_chooses_the_pods_of_its_shard_alone(form: str) -> None:
    fleet = steered(fleet_of(""), form, app="api", port=8000, target_port=9000)
    assert {name: item["selector"] for name, item in of_kind(rendered(fleet), "Service").items()} == {
        "orders-s0-http": {"app": "api", "shard": "s0"},
        "orders-s1-http": {"app": "api", "shard": "s1"},
    }
    for item in of_kind(rendered(fleet), "Service").values():
        assert item["ports"] == [{"name": "http", "port": 8000, "targetPort": 9000, "protocol": "TCP"}]
        assert "sessionAffinity" not in item


def test_with_affinity_a_client_keeps_its_pod() -> None:
    fleet = fleet_of("traffic: {form: session-affinity, affinity_timeout: 90s}\n")
    assert of_kind(rendered(fleet), "Service")["orders-http"] == {
        "type": "ClusterIP",
        "selector": {"app": "orders-consumer"},
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90}},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
    }


def test_affinity_over_several_shards_is_warned_of() -> None:
    sentences = [
        warning for warning in warnings(fleet_of("traffic: session-affinity\n")) if "session-affinity" in warning
    ]
    assert len(sentences) == 1
    assert not any("session-affinity" in warning for warning in warnings(fleet_of("traffic: services\n")))


def test_istio_and_kong_keep_a_slot_with_one_pod() -> None:
    rule = of_kind(rendered(steered(fleet_of(""), "istio")), "DestinationRule")["orders-http"]
    assert rule["trafficPolicy"] == {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-shard-slot"}}}
    items = rendered(steered(fleet_of(""), "kong"))
    policies = of_kind(items, "KongUpstreamPolicy")
    assert policies == {"orders-http": {"algorithm": "consistent-hashing", "hashOn": {"header": "x-shard-slot"}}}
    for item in items:
        if item["kind"] == "Service":
            assert item["metadata"]["annotations"] == {"konghq.com/upstream-policy": "orders-http"}


def test_a_gateway_is_named_in_full() -> None:
    gateway_text = (
        "traffic: {form: gateway-api, gateway: {name: g, namespace: infra, listener: https}, hosts: [a.example.com]}\n"
    )
    route = of_kind(rendered(fleet_of(gateway_text)), "HTTPRoute")["orders-s0-http"]
    (parent,) = route["parentRefs"]
    assert parent | {"name": "g", "namespace": "infra", "sectionName": "https"} == parent
    assert route["hostnames"] == ["a.example.com"]


def test_a_shards_own_routes_alone() -> None:
    fleet = steered(fleet_of(""), "kong")
    assert {(document.kind, document.name) for document in documents(fleet, shards=["s1"], kinds=KINDS)} == {
        ("Service", "orders-s1-http"),
        ("Ingress", "orders-s1-http"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway-api", "the form gateway-api needs a gateway"),
        ("{form: istio, istio_gateways: [infra/public]}", "istio_gateways other than mesh need hosts"),
        ("{form: kong, slot_header: x, type_header: x}", "slot_header and type_header are the same header"),
        ("{form: kong, slot_header: X-Slot}", "'X-Slot' isn't a header's name: lower-case"),
        ("{form: kong, path_prefix: api}", "'api' isn't a path that begins with '/'"),
        ("nginx", "'nginx' isn't one of 'none', 'services'"),
        ("{form: services, port: 0}", "traffic.port"),
    ],
)
def test_what_cant_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        fleet_of(f"traffic: {text}\n")


def test_the_page_shows_the_defaults() -> None:
    page = (Path(__file__).parents[3] / "docs" / "traffic.md").read_text()
    (shown,) = (block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "slot_header:" in block)
    traffic = fleet_of(shown).traffic
    default = Traffic()
    assert (traffic.form, traffic.app, traffic.gateway is None) == ("gateway-api", "orders-api", False)
    assert traffic.model_copy(update={"form": default.form, "app": None, "gateway": None}) == default

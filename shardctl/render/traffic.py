"""Routes of synchronous HTTP requests: each slot's to the pods of its one shard, by the prefixes that filters select by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardctl.fleet.spec import Fleet, Shard
from shardctl.render.objects import Object, Plan, Writer, seconds

PREFIXES_A_PATTERN = 8  # a gateway compiles each pattern, and some bound how large it may grow
MATCHES_A_ROUTE = 64  # the most that one rule of an HTTPRoute takes
ROUTED = {"services", "kong", "gateway-api"}  # a Service a shard; the others choose the shard's pods of one Service


@dataclass(frozen=True, slots=True)
class Match:
    """The slot header matches `slot`, and the type header is `type` unless that is None."""

    slot: str
    type: str | None


def slot_patterns(fleet: Fleet, shard: Shard, per_pattern: int = PREFIXES_A_PATTERN) -> tuple[str, ...]:
    """Anchored patterns that match the digits of the shard's slots, whole and alone: `^(01[01]{8}|1[01]{9})$`.

    RE2, PCRE and Rust read them alike. They match exactly `slot_bits` digits, so a slot that isn't one finds no shard.
    """
    bits = fleet.routing.slot_bits
    whole = [prefix + _any_digits(bits - len(prefix)) for prefix in shard.slots.prefixes(bits)]
    chunks = (whole[first : first + per_pattern] for first in range(0, len(whole), per_pattern))
    return tuple(f"^{chunk[0]}$" if len(chunk) == 1 else f"^({'|'.join(chunk)})$" for chunk in chunks)


def _any_digits(count: int) -> str:
    return "" if count == 0 else "[01]" if count == 1 else f"[01]{{{count}}}"


def matches(fleet: Fleet, shard: Shard) -> tuple[Match, ...]:
    """The matches of the shard's requests.

    A shard that takes all types, or all but some, asks for no type: what it leaves out goes to shards that do ask, at the
    same slots (`load` proved that), and every router prefers a match that asks for more.
    """
    return tuple(Match(pattern, kind) for pattern in slot_patterns(fleet, shard) for kind in shard.types or (None,))


def warnings(fleet: Fleet) -> Iterator[str]:
    if fleet.traffic.form == "session-affinity" and len(fleet.shards) > 1:
        yield (
            "traffic: session-affinity keeps a client with one pod of any shard, whatever the slot; "
            "with more than one shard, use another form: it sends each request to the shard of its slot"
        )


def services(plan: Plan) -> Iterator[Object]:
    traffic = plan.fleet.traffic
    if traffic.form == "none":
        return
    shown: dict[str, object] = {
        "app": traffic.app or plan.app,
        "port": traffic.port,
        "target_port": traffic.target_port,
        "affinity_seconds": seconds(traffic.affinity_timeout) if traffic.form == "session-affinity" else None,
        "upstream_policy": _fleets_service(plan) if traffic.form == "kong" else None,
    }
    if traffic.form in ROUTED:
        for writer in plan.writers:
            yield plan.object(
                "Service", _service(writer), writer, template="service-http", shard=writer.shard.name, **shown
            )
    elif plan.whole:
        yield plan.object("Service", _fleets_service(plan), None, template="service-http", shard=None, **shown)


def destination_rules(plan: Plan) -> Iterator[Object]:
    if plan.fleet.traffic.form == "istio" and plan.whole:
        yield plan.object(
            "DestinationRule",
            _fleets_service(plan),
            None,
            host=_fleets_host(plan),
            slot_header=plan.fleet.traffic.slot_header,
            shards=[shard.name for shard in plan.fleet.shards],
        )


def virtual_services(plan: Plan) -> Iterator[Object]:
    """Istio takes the first route that matches, so routes that match a type come before those that don't."""
    fleet = plan.fleet
    traffic = fleet.traffic
    if traffic.form != "istio" or not plan.whole:
        return
    routes = [(shard.name, matches(fleet, shard)) for shard in sorted(fleet.shards, key=lambda shard: not shard.types)]
    yield plan.object(
        "VirtualService",
        _fleets_service(plan),
        None,
        hosts=traffic.hosts or (_fleets_host(plan),),
        gateways=traffic.istio_gateways,
        host=_fleets_host(plan),
        port=traffic.port,
        path_prefix=traffic.path_prefix,
        slot_header=traffic.slot_header,
        type_header=traffic.type_header,
        routes=[(name, asked) for name, asked in routes if asked],
        refusal=f"{traffic.slot_header} must carry a slot of fleet {fleet.fleet}: {fleet.routing.slot_bits} digits 0 and 1\n",
    )


def upstream_policies(plan: Plan) -> Iterator[Object]:
    if plan.fleet.traffic.form == "kong" and plan.whole:
        header = plan.fleet.traffic.slot_header
        yield plan.object("KongUpstreamPolicy", _fleets_service(plan), None, slot_header=header)


def ingresses(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    traffic = fleet.traffic
    for writer in plan.writers if traffic.form == "kong" else ():
        everything = slot_patterns(fleet, writer.shard, per_pattern=len(fleet.shards) << fleet.routing.slot_bits)
        if not everything:
            continue  # a shard that gives all of its slots away
        asked = {traffic.slot_header: f"~*{everything[0]}"}  # by `~*` Kong knows a pattern
        if writer.shard.types:
            asked[traffic.type_header] = ",".join(writer.shard.types)
        yield plan.object(
            "Ingress",
            _service(writer),
            writer,
            headers=[(f"konghq.com/headers.{name}", value) for name, value in asked.items()],
            ingress_class=traffic.ingress_class,
            hosts=traffic.hosts or (None,),
            path_prefix=traffic.path_prefix,
            service=_service(writer),
            port=traffic.port,
        )


def http_routes(plan: Plan) -> Iterator[Object]:
    fleet = plan.fleet
    traffic = fleet.traffic
    for writer in plan.writers if traffic.form == "gateway-api" else ():
        for number, asked in enumerate(_in_parts(matches(fleet, writer.shard)), 1):
            yield plan.object(
                "HTTPRoute",
                _service(writer) + (f"-{number}" if number > 1 else ""),
                writer,
                gateway=traffic.gateway,
                hosts=traffic.hosts,
                path_prefix=traffic.path_prefix,
                slot_header=traffic.slot_header,
                type_header=traffic.type_header,
                matches=asked,
                service=_service(writer),
                port=traffic.port,
            )


def _in_parts(asked: Sequence[Match]) -> Iterator[Sequence[Match]]:
    for first in range(0, len(asked), MATCHES_A_ROUTE):
        yield asked[first : first + MATCHES_A_ROUTE]


def _service(writer: Writer) -> str:
    return f"{writer.id}-http"


def _fleets_service(plan: Plan) -> str:
    return f"{plan.fleet.fleet}-http"


def _fleets_host(plan: Plan) -> str:
    return f"{_fleets_service(plan)}.{plan.fleet.namespace}.svc.cluster.local"

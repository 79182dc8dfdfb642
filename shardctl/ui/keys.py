"""A routing key on the page: where its writes go, what the databases hold of its slot, and whether it is parked. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.shard import parked
from shardctl.shard.membership import Membership
from shardctl.status.collector import Look
from shardctl.status.poller import Asker
from shardctl.status.report import DatabaseFacts, Unknown
from shardctl.ui.problems import Problem
from shardctl.wire.message import InvalidWriteError, check_key, slot_for
from shardctl.wire.placement import database_text, placement

Urls = Mapping[str, str | Unknown]


def looked_up(look: Look, urls: Urls, asker: Asker, key: str, kind: str, at: str) -> dict[str, Any]:
    """As `shardctl route` shows it, with the lanes of the slot in each shard's database. `kind` and `at` may be "".

    Raises Problem.
    """
    fleet = look.fleet
    slot = _slot(fleet, key, kind, at)
    place = placement(fleet, key, kind or None, slot)
    for shard in place["shards"]:
        shard["database"] = database_text(shard)
    concerned = [shard.name for shard in fleet.shards if _has_or_had(fleet, shard.name, slot, kind)]
    lanes = [_lanes(name, look.facts[name], slot) for name in concerned]
    keys = _parked(fleet.fleet, {name: urls[name] for name in concerned if name in urls}, asker, key, slot, kind)
    return {**place, "lanes": lanes, **keys}


def _slot(fleet: Fleet, key: str, kind: str, at: str) -> int:
    if kind and kind not in fleet.message_types:
        raise Problem(HTTPStatus.BAD_REQUEST, f"type {kind[:40]!r} isn't among the file's message types")
    of_type = fleet.message_types[kind] if kind else None
    by_time = of_type.time_bucket if of_type else None
    if by_time and not at:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            f"type {kind} is routed by the {by_time.unit} of {by_time.field}: give it as time, such as 2026-01-31T12:00:00Z",
        )
    try:
        check_key("the key", key)
        return slot_for(of_type, key, {by_time.field: at} if by_time else {}, fleet.routing.rule)
    except InvalidWriteError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from error


def _has_or_had(fleet: Fleet, name: str, slot: int, kind: str) -> bool:
    """Whether the file gives the shard the slot, in this generation or in one that a rebalance ends."""
    shard = fleet.shard(name)
    return (not kind or shard.takes(kind)) and any(slot in version.slots for version in topology.generations(shard))


def _lanes(name: str, facts: DatabaseFacts | Unknown, slot: int) -> dict[str, Any]:
    """What a shard's database holds of a slot, by generation; `unknown` says why that isn't known."""
    if isinstance(facts, Unknown):
        return {"shard": name, "lanes": None, "unknown": facts.why}
    if facts.known.empty:
        return {"shard": name, "lanes": None, "unknown": "its database doesn't have shardctl's tables yet"}
    lanes = sorted((lane for lane in facts.known.lanes.values() if lane.slot == slot), key=lambda lane: lane.generation)
    return {
        "shard": name,
        "lanes": [{"generation": lane.generation, "state": str(lane.state)} for lane in lanes],
        "unknown": None,
    }


def _parked(fleet: str, urls: Urls, asker: Asker, key: str, slot: int, kind: str) -> dict[str, Any]:
    """Where the key is parked, and which shards' databases didn't say."""
    answers: dict[str, Any] = asker.ask(
        {
            name: partial(_asked, Membership(fleet, name), url, key)
            for name, url in urls.items()
            if not isinstance(url, Unknown)
        }
    )
    answers |= {name: url for name, url in urls.items() if isinstance(url, Unknown)}
    for name, answer in answers.items():
        if not isinstance(answer, Unknown) and answer[0] != key:  # the asker is busy with an earlier question
            answers[name] = Unknown("it is still busy with the look-up of another key: try again")
    return {
        "parked": [
            parked.as_json(parked_key)
            for answer in answers.values()
            if not isinstance(answer, Unknown)
            for parked_key in answer[1]
            if parked_key.slot == slot and kind in {"", parked_key.message_type}
        ],
        "parked_unknown": {name: answer.why for name, answer in answers.items() if isinstance(answer, Unknown)},
    }


def _asked(whose: Membership, url: str, key: str) -> tuple[str, tuple[parked.ParkedKey, ...]]:
    """With the key that was asked about."""
    with parked.opened(whose, url, reading=True) as connection:
        return key, parked.keys(connection, whose.shard, key)

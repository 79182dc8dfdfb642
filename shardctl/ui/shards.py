"""One shard on the page: its replicas, subscriptions, lanes and last errors. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance.backlog import Backlog
from shardctl.shard import parked
from shardctl.shard.membership import Membership
from shardctl.status.collector import Look
from shardctl.status.poller import Asker
from shardctl.status.report import FORGOTTEN_SECONDS, SILENT_SECONDS, DatabaseFacts, Unknown, messages, oldest_seconds
from shardctl.ui.problems import Problem

MAX_ERRORS = 20


def shown(look: Look, urls: Mapping[str, str | Unknown], asker: Asker, name: str) -> dict[str, Any]:
    """What is known of a shard; None where it isn't, and `unknown` says why. Raises Problem."""
    shard = next((shard for shard in look.fleet.shards if shard.name == name), None)
    if shard is None:
        raise Problem(HTTPStatus.NOT_FOUND, f"there is no shard {name[:40]!r}")
    unknown = {} if not isinstance(look.backlogs, Unknown) else {"backlog": look.backlogs.why}
    return {
        "name": name,
        "generation": shard.generation,
        "types": [kind for kind in look.fleet.message_types if shard.takes(kind)],
        "slots": str(shard.slots),
        "subscriptions": [_subscription(sub, look.backlogs) for sub in topology.every_subscription(look.fleet, shard)],
        **_of_database(
            look.facts[name],
            urls.get(name, Unknown("the file has just changed: look again")),
            asker,
            Membership(look.fleet.fleet, name),
            unknown,
        ),
        "unknown": unknown,
    }


def _of_database(
    facts: DatabaseFacts | Unknown, url: str | Unknown, asker: Asker, whose: Membership, unknown: dict[str, str]
) -> dict[str, Any]:
    """Replicas, lanes and last errors; what isn't known is added to `unknown`."""
    if isinstance(facts, Unknown) or facts.known.empty:
        missing = "it doesn't have shardctl's tables yet: `shardctl provision` creates them"
        unknown["database"] = facts.why if isinstance(facts, Unknown) else missing
        return {"replicas": None, "lanes": None, "errors": None}
    errors = _errors(url, asker, whose)
    if isinstance(errors, Unknown):
        unknown["last errors"] = errors.why
    return {
        "replicas": _replicas(facts),
        "lanes": _lanes(facts),
        "errors": None if isinstance(errors, Unknown) else errors,
    }


def _replicas(facts: DatabaseFacts) -> list[dict[str, Any]]:
    """Those with a heartbeat of the last minutes in the database, whether the metrics name them or not."""
    generations = facts.generations or {}
    return [
        {
            "name": name,
            "silent_seconds": max(0.0, seconds),
            "silent": seconds >= SILENT_SECONDS,
            "generations": list(generations.get(name, ())),
        }
        for name, seconds in sorted((facts.silent_seconds or {}).items())
        if seconds < FORGOTTEN_SECONDS
    ]


def _subscription(sub: topology.Subscription, backlogs: Mapping[str, Backlog] | Unknown) -> dict[str, Any]:
    known = {} if isinstance(backlogs, Unknown) else backlogs
    return {
        "id": sub.id,
        "generation": sub.generation,
        "messages": messages(known, [sub.id]),
        "oldest_seconds": oldest_seconds(known, [sub.id]),
    }


def _lanes(facts: DatabaseFacts) -> list[dict[str, Any]]:
    """The slots that its database holds, by generation and state."""
    slots: dict[tuple[int, str], list[int]] = {}
    for lane in facts.known.lanes.values():
        slots.setdefault((lane.generation, str(lane.state)), []).append(lane.slot)
    return [
        {"generation": generation, "state": state, "slots": str(SlotSet.of(numbers)), "count": len(numbers)}
        for (generation, state), numbers in sorted(slots.items())
    ]


def _errors(url: str | Unknown, asker: Asker, whose: Membership) -> Any:
    """The last parked keys with why their first message failed, the newest first; or Unknown."""
    return url if isinstance(url, Unknown) else asker.ask({whose.shard: partial(_parked, whose, url)})[whose.shard]


def _parked(whose: Membership, url: str) -> list[dict[str, Any]]:
    with parked.opened(whose, url, reading=True) as connection:
        keys = parked.keys(connection, whose.shard)
    return [parked.as_json(key) for key in sorted(keys, key=lambda key: key.parked_time, reverse=True)[:MAX_ERRORS]]

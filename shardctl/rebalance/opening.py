"""Opening a rebalance: from then on both generations of each changed shard receive, and the old one goes on writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from shardctl import provision
from shardctl.fleet.spec import Fleet
from shardctl.rebalance import handover, journal
from shardctl.shard import lanes
from shardctl.shard.database import writing


def make_tables(fleet: Fleet, urls: Mapping[str, str]) -> tuple[str, ...]:
    """What is missing of them: all of a new shard's, or those that a newer version of this program wants. Holds no slot.

    The shards whose databases had none.
    """
    steps = {
        shard.name: provision.provision_database(fleet, shard, urls[shard.name])
        for shard in handover.participating(fleet)
    }
    return tuple(name for name, step in steps.items() if step.is_new_database)


def open_rebalance(
    fleet: Fleet,
    databases: Mapping[str, Engine],
    publisher: Any,
    subscriber: Any,
    done: Callable[[str], None] = lambda _: None,
) -> None:
    """Safe to run again, after it was killed anywhere. Raises JournalError, ProvisionError, DatabaseError.

    The journal comes first, so that two of them can't be opened. Every database gets the id that one of them has already. A
    generation's lanes are announced when its subscriptions are there: what its consumers meet before that they hold.
    """
    shards = sorted(
        handover.participating(fleet), key=lambda shard: shard.name
    )  # two that open at once meet at the first
    rebalance = journal.find(fleet, databases)
    for shard in shards:
        with writing(databases[shard.name]) as connection:
            rebalance = journal.begin(connection, fleet, shard.name, rebalance)
        done(f"journal of rebalance {rebalance} opened in the database of {shard.name}")
    provision.provision_pubsub(
        fleet, publisher, subscriber, done=lambda step: done(str(step)) if step.action != "identical" else None
    )
    announce(fleet, databases, done)


def announce(fleet: Fleet, databases: Mapping[str, Engine], done: Callable[[str], None] = lambda _: None) -> None:
    """Announce to each changed shard's database which slots are to come. An abort does it too, for a start that was killed.

    Else the consumers of a subscription that was made already would hold its messages for ever.
    """
    for shard in handover.participating(fleet):
        with writing(databases[shard.name]) as connection:
            lanes.announce(connection, shard.slots, shard.generation)
        done(f"{len(shard.slots):,} slots announced to generation {shard.generation} of {shard.name}")

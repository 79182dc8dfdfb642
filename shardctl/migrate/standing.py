"""Which revisions each shard has, and why they can't be brought on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Shard
from shardctl.migrate.history import History, Revision
from shardctl.migrate.session import was_overtaken
from shardctl.rebalance import journal
from shardctl.shard import mapped, revisions, schema
from shardctl.shard.database import DatabaseError, snapshot
from shardctl.shard.mapped import Lack
from shardctl.shard.revisions import Entry, RevisionState

LOOKS = 5  # while another `apply` changes the tables that are looked at


@dataclass(frozen=True, slots=True)
class Standing:
    """What a shard's database reports. `fault` says why it doesn't; then nothing else is known."""

    shard: str
    product: str
    entries: Mapping[str, Entry] = field(default_factory=dict)
    lacks: tuple[Lack, ...] = ()
    open_rebalances: tuple[str, ...] = ()
    fault: str = ""

    @property
    def done(self) -> frozenset[str]:
        return revisions.done(self.entries)

    def pending(self, history: History) -> tuple[Revision, ...]:
        return tuple(revision for revision in history.revisions if revision.id not in self.done)

    def current(self, history: History) -> str | None:
        """The last revision that is done."""
        return next((name for name in reversed(history.ids) if name in self.done), None)

    def half_done(self) -> tuple[str, ...]:
        return tuple(name for name, entry in self.entries.items() if entry.state == RevisionState.BEGUN)


def look(shard: Shard, engine: Engine, kinds: Mapping[str, MessageType]) -> Standing:
    """Never raises DatabaseError: what isn't known is `fault`."""
    own = {name: kind for name, kind in kinds.items() if shard.takes(name)}
    for _ in range(LOOKS):
        try:
            return _look(shard, engine, own)
        except DatabaseError as error:
            fault = error
            if not was_overtaken(error):
                break
    return Standing(shard.name, engine.dialect.name, fault=str(fault))


def _look(shard: Shard, engine: Engine, kinds: Mapping[str, MessageType]) -> Standing:
    with snapshot(engine) as connection:
        product = connection.dialect.name
        if not connection.dialect.has_table(connection, schema.fence.name):
            fault = "its database has none of shardctl's tables. Run `shardctl provision`, or give the right URL"
            return Standing(shard.name, product, fault=fault)
        return Standing(
            shard.name,
            product,
            revisions.read(connection),
            mapped.lacking(connection, kinds),
            tuple(journal.open_ones(connection)),
        )


def unknown(standings: Mapping[str, Standing]) -> Iterator[str]:
    for name, standing in standings.items():
        if standing.fault:
            yield f"shard {name}: {standing.fault.rstrip('.')}."


def faults(history: History, standings: Mapping[str, Standing]) -> Iterator[str]:
    """Why these files can't be what the databases were changed by."""
    for name, standing in standings.items():
        begun = standing.half_done()
        if strange := sorted((standing.done | set(begun)) - set(history.ids)):
            yield (
                f"shard {name} has revision {strange[0]}, which no file in {history.folder} is: this is another folder, or an "
                "older checkout. Bring the file back."
            )
        late = [revision for revision in standing.pending(history) if _is_overtaken(revision, history, standing)]
        if late:
            yield (
                f"shard {name} has revision {standing.current(history)} already, which comes after {late[0]}. Let "
                f"{late[0].path.name} follow the last revision: `down_revision = {history.head!r}`."
            )


def _is_overtaken(revision: Revision, history: History, standing: Standing) -> bool:
    place = history.ids.index(revision.id)
    return any(name in standing.done for name in history.ids[place + 1 :])

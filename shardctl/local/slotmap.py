"""Which shard's database holds each slot at one moment, as a picture coloured by shard and as a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.text import Text

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet

COLUMNS, ROWS = 64, 16  # of the picture; where there are more slots, a cell stands for as many as it takes
COLOURS = ("dodger_blue2", "orange1", "medium_purple2", "spring_green3", "hot_pink", "khaki1", "turquoise2", "red3")
NOBODYS = "grey23"


@dataclass(frozen=True, slots=True)
class SlotMap:
    """`holders` has the shard of each slot that is active somewhere, of `shards`; the others are being handed over."""

    slots: int
    shards: tuple[str, ...]
    holders: Mapping[int, str]

    def moved_since(self, before: SlotMap) -> int:
        """How many slots another shard holds than before."""
        return sum(before.holders.get(slot) not in (None, shard) for slot, shard in self.holders.items())


def read(fleet: Fleet, shards: Sequence[str], databases: Mapping[str, str]) -> SlotMap:
    """The databases are asked one after the other: for a slot that is handed over meanwhile, the last answer counts."""
    from sqlalchemy import create_engine, text

    holders: dict[int, str] = {}
    for shard in shards:
        engine = create_engine(databases[shard])
        with engine.connect() as connection:
            active = connection.scalars(text("SELECT slot FROM shardctl_lanes WHERE state = 'active'"))
            holders.update(dict.fromkeys(active, shard))
        engine.dispose()
    return SlotMap(1 << fleet.routing.slot_bits, tuple(shards), holders)


def picture(slot_map: SlotMap, title: str) -> Group:
    """A cell for each slot, or for as many as one has to stand for, from left to right and from top to bottom."""
    width = max(1, slot_map.slots // (COLUMNS * ROWS))
    cells = Text(no_wrap=True)
    for number, first in enumerate(range(0, slot_map.slots, width)):
        if number and number % COLUMNS == 0:
            cells.append("\n")
        cells.append("■", _colour(slot_map, slot_map.holders.get(first)))
    legend = Text(f"{title}   ")
    for shard, count in _counts(slot_map):
        legend.append("■ ", _colour(slot_map, shard)).append(f"{shard} {count:,}   ")
    if under_way := slot_map.slots - len(slot_map.holders):
        legend.append("■ ", NOBODYS).append(f"under way {under_way:,}")
    return Group(legend, cells)


def line(slot_map: SlotMap) -> str:
    """For a log: `s0 0-341   s1 342-1023`."""
    by_shard: dict[str, list[int]] = {shard: [] for shard in slot_map.shards}
    for slot, shard in slot_map.holders.items():
        by_shard[shard].append(slot)
    return "   ".join(f"{shard} {SlotSet.of(slots) if slots else 'none'}" for shard, slots in by_shard.items())


def _counts(slot_map: SlotMap) -> Iterable[tuple[str, int]]:
    holders = list(slot_map.holders.values())
    return ((shard, holders.count(shard)) for shard in slot_map.shards)


def _colour(slot_map: SlotMap, shard: str | None) -> str:
    return NOBODYS if shard is None else COLOURS[slot_map.shards.index(shard) % len(COLOURS)]

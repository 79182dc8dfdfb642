"""How a rebalance stands, counted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from shardctl.fleet.keyspace import SlotSet, lane_of
from shardctl.fleet.spec import Fleet
from shardctl.rebalance import handover
from shardctl.rebalance.handover import Stage
from shardctl.rebalance.preflight import Known

RECENT_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Summary:
    """`stages` counts slots by stage, `by_shard` the same for the slots of each shard; `moves` are still to be copied."""

    total: int
    stages: Mapping[str, int]
    by_shard: Mapping[str, Mapping[str, int]]
    moves: Mapping[tuple[str, str], SlotSet]
    to_flip: int
    in_hand: SlotSet  # due, or left and not arrived
    broken: tuple[str, ...]
    seconds_left: float | None  # at the speed of the last minute; None where nothing was handed over in it


def survey(fleet: Fleet, known: Mapping[str, Known], now_us: int = 0) -> Summary:
    views = {name: each.lanes for name, each in known.items()}
    stages: Counter[str] = Counter(dict.fromkeys(Stage, 0))
    by_shard: dict[str, Counter[str]] = {shard.name: Counter() for shard in handover.participating(fleet)}
    moves: dict[tuple[str, str], list[int]] = {}
    in_hand, broken, flips, recent = [], [], 0, 0
    for of in handover.hand_overs(fleet):
        standing = handover.standing(of, views)
        stages[standing.stage] += 1
        by_shard[of.to.shard][standing.stage] += 1
        if standing.stage == Stage.BROKEN:
            broken.append(standing.fault)
        elif standing.stage == Stage.ARRIVED:
            began = views[of.to.shard][lane_of(of.slot, of.to.generation)].barrier_time_us
            recent += began is not None and began > now_us - RECENT_US
        elif standing.source is not None and standing.source.shard != of.to.shard:
            moves.setdefault((standing.source.shard, of.to.shard), []).append(of.slot)
        else:
            flips += 1
        if standing.stage in (Stage.DUE, Stage.LEFT):
            in_hand.append(of.slot)
    total = sum(stages.values())
    left = total - stages[Stage.ARRIVED] - stages[Stage.BROKEN]
    return Summary(
        total,
        dict(stages),
        by_shard,
        {pair: SlotSet.of(slots) for pair, slots in sorted(moves.items())},
        flips,
        SlotSet.of(in_hand),
        tuple(broken),
        left * RECENT_US / 1e6 / recent if recent and now_us else None,
    )

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
    in_flight: SlotSet  # due, or left and not arrived
    broken: tuple[str, ...]
    seconds_left: float | None  # at the speed of the last minute; None where nothing was handed over in it


def summarize(fleet: Fleet, known: Mapping[str, Known], now_us: int = 0) -> Summary:
    views = {name: report.lanes for name, report in known.items()}
    stages: Counter[str] = Counter(dict.fromkeys(Stage, 0))
    by_shard: dict[str, Counter[str]] = {shard.name: Counter() for shard in handover.participating(fleet)}
    moves: dict[tuple[str, str], list[int]] = {}
    in_flight, broken, flips, recent = [], [], 0, 0
    for hand_over in handover.hand_overs(fleet):
        standing = handover.standing(hand_over, views)
        stages[standing.stage] += 1
        by_shard[hand_over.to.shard][standing.stage] += 1
        if standing.stage == Stage.BROKEN:
            broken.append(standing.fault)
        elif standing.stage == Stage.ARRIVED:
            began = views[hand_over.to.shard][lane_of(hand_over.slot, hand_over.to.generation)].barrier_time_us
            recent += began is not None and began > now_us - RECENT_US
        elif standing.source is not None and standing.source.shard != hand_over.to.shard:
            moves.setdefault((standing.source.shard, hand_over.to.shard), []).append(hand_over.slot)
        else:
            flips += 1
        if standing.stage in (Stage.DUE, Stage.LEFT):
            in_flight.append(hand_over.slot)
    total = sum(stages.values())
    left = total - stages[Stage.ARRIVED] - stages[Stage.BROKEN]
    return Summary(
        total,
        dict(stages),
        by_shard,
        {pair: SlotSet.of(slots) for pair, slots in sorted(moves.items())},
        flips,
        SlotSet.of(in_flight),
        tuple(broken),
        left * RECENT_US / 1e6 / recent if recent and now_us else None,
    )

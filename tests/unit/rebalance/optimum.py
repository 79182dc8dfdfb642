"""The fewest slots that any plan can move, by trying them all. For small fleets."""

from functools import cache
from itertools import combinations, product

from shardctl.fleet.filters import MAX_FILTER_BYTES
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.topology import subscriptions


def fewest_moved(fleet, group, shards, most):
    """How many slots must change shards for each count to be within its quota and each changed filter to fit.

    None where no way moves `most` or fewer.
    """
    owner = {slot: number for number, at in enumerate(group.shards) for slot in shards[at].slots}
    quotas = group.quotas

    @cache
    def fits(number, slots):
        shard = shards[group.shards[number]]
        of_plan = shard.model_copy(update={"slots": SlotSet.of(slots)})
        return slots == frozenset(shard.slots) or all(
            len(sub.filter.encode()) <= MAX_FILTER_BYTES for sub in subscriptions(fleet, of_plan)
        )

    def balanced(owned):
        return all(q.low <= len(owned[n]) <= q.high for n, q in enumerate(quotas))

    takers = [number for number, quota in enumerate(quotas) if quota.high]
    for moved in range(most + 1):
        for slots in combinations(owner, moved):
            for to in product(takers, repeat=moved):
                if any(owner[slot] == number for slot, number in zip(slots, to, strict=True)):
                    continue
                after = owner | dict(zip(slots, to, strict=True))
                owned = [frozenset(s for s, n in after.items() if n == number) for number in range(len(quotas))]
                if balanced(owned) and all(fits(n, own) for n, own in enumerate(owned) if own):
                    return moved
    return None

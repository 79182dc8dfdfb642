"""A deterministic simulation of a rebalance: the real executor and the real consumers, two databases or three, one topic.

The consumers run as in `tests.sim`, on the real store. The executor runs too: each of its statements waits until it is scheduled
between theirs, and each of its transactions and publishes may be its last. The oracle knows who published what; of lanes it knows
only that a slot is active once.

    python -m tests.sim --rebalance                     a thousand schedules
    python -m tests.sim --rebalance --seed 7 --trace    one of them, event by event
    python -m tests.sim --rebalance --sweep 0           the executor killed at every effect
"""

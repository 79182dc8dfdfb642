"""A deterministic simulation of the consumer's core.

The real consumer (replica, handler, batcher, locks, intake, dead letters) runs against a simulated Pub/Sub, Redis and database,
on an event loop whose clock is a number and whose schedule is drawn from a seed. One seed is one history, always. The oracle
knows nothing of the consumer: it compares what was published with what is committed, at every commit and every ack.

    python -m tests.sim                      a thousand schedules
    python -m tests.sim --seed 7 --trace     one of them, event by event
    python -m tests.sim --rebalance          the same with slots on the move: see tests/sim/rebalance
"""

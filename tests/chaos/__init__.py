"""A fleet that is hurt on purpose while it works, and a judge that was not there.

Real consumers, PostgreSQL, Redis and broker; producers that publish throughout; faults drawn from a seed. Then every table is
read back and compared with what was published, as Jepsen does: lost, duplicated, reordered, misplaced, phantom, stuck.

    python -m tests.chaos --seed 7 --minutes 2
    python -m tests.chaos --seed 7 --minutes 1 --faults consumer_pause,postgres_kill
    python -m tests.chaos --seed 7 --minutes 5 --rebalance
    python -m tests.chaos --seed 3 --minutes 2 --rebalance --mistake no_hold

With `--rebalance` a shard is added and another one taken away, again and again, by `shardctl` commands that are killed, frozen
and run again; and a part of the keys has a producer that keeps no order. `--mistake` plants one of ours, which must be found.

A seed gives the same writes and the same schedule of faults again; what the machine makes of them in time differs.
"""

import os

# Read when gRPC is loaded. It needs no support for forks, since we start other programs only, and would complain of each.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

"""An in-memory Pub/Sub: the real client library talks to it through `PUBSUB_EMULATOR_HOST`.

A pure core (topics, subscriptions, lanes, leases; `now` is an argument) under a thin gRPC shell. In this process:
`async with Broker() as broker: broker.host`; as a process of its own: `python -m shardctl.local.broker --port 0`.
"""

from shardctl.local.broker.admin import set_faults, stats
from shardctl.local.broker.faults import Faults
from shardctl.local.broker.server import Broker, serve

__all__ = ["Broker", "Faults", "serve", "set_faults", "stats"]

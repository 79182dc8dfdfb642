"""An in-memory Pub/Sub: the real client library talks to it through `PUBSUB_EMULATOR_HOST`.

A pure core (topics, subscriptions, lanes, leases; `now` is an argument) under a thin gRPC shell. In this process:
`async with Broker() as broker: broker.host`; as a process of its own: `python -m shardctl.broker --port 0`.

As the service documents it: filters, limits, immutability, leases, order with redelivery of later messages,
retry back-off, dead letters, exactly-once ack ids, retention, seeks, snapshots, detaching, push with signed tokens.
Different from the service:
- IAM, schemas of protocol buffers, message transforms, and subscriptions to BigQuery, Bigtable and Cloud Storage are
  refused by name;
- a schema's revision isn't compared with the one before;
- idle subscriptions don't expire;
- pushes go to any URL, http too, a fixed number at once; their tokens are signed with the broker's own key;
- while any message of an ordering key is outstanding, its later ones go only to the reader that has it, and a closed
  stream's messages stay leased until their deadline; the service promises less and usually does this;
- an ack after the lease has ended never counts (there it may); attempts are counted exactly (there: best effort);
- leases end within a tenth of a second after their deadline.
"""

from shardctl.broker.admin import set_faults, stats
from shardctl.broker.faults import Faults
from shardctl.broker.server import Broker, serve

__all__ = ["Broker", "Faults", "serve", "set_faults", "stats"]

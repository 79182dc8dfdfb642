"""How long one write takes from a producer's call to its ack while nearly nothing else happens, part by part.

    python -m bench.latency [--json] [--rate N] [--seconds S]

Writes come one by one, at an even rate, through the publisher that producers use. Each part is observed from outside the
consumer, by one machine's clock:

- `answered`: from the call of `publish` until its future has the message id.
- `taken`: from the call until the broker's publish time.
- `sent`: from there until the broker sends the message to the consumer.
- `committed`: from there until another session of the database hears of the commit, by a NOTIFY of a trigger on the table.
- `acked`: from there until the ack arrives at the broker. Below 0 where the ack was quicker than the notification.
- `call_to_commit`, `call_to_ack`: the sum of the parts but `answered`, which runs beside them.
- `database_alone`: the baseline: an upsert into the same table from here, from the statement until the other session hears of it.
- `times_database_alone`: how often that goes into `call_to_commit`, by their p50.

Milliseconds, p50 and p99 of values that occurred (nearest rank); a sum's percentiles are its own.
"""

from __future__ import annotations

import math
import threading
import time

import psycopg

from bench.load import writes
from bench.observedbroker import ObservedBroker
from bench.report import parser_of, say, show
from bench.rig import SHARD, plain, rig
from shardctl.local.servers.process import wait_until

WARM_UP_WRITES = 20
ALONE_WRITES = 100
LONGEST_SECONDS = 60.0
CHANNEL = "committed"
TRIGGER = f"""
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('{CHANNEL}', TG_TABLE_NAME || ' ' || NEW.revision); RETURN NEW; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION tell();
"""

UPSERT = """
INSERT INTO customers (customer_id, name, revision, slot) VALUES (%(key)s, 'x', %(revision)s, 0)
ON CONFLICT (customer_id) DO UPDATE SET name = excluded.name, revision = excluded.revision
"""


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--rate", type=float, default=10, help="writes a second")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    count = WARM_UP_WRITES + round(options.rate * options.seconds)
    with rig(ObservedBroker) as local:
        local.execute(TRIGGER)
        local.start_consumers()
        say(f"{options.rate:g} writes/s …")
        commits = Commits(local.database_url(SHARD))
        calls = _publish(local, options.rate, count)
        if not wait_until(lambda: len(commits.times) >= count, LONGEST_SECONDS):
            raise SystemExit(f"{len(commits.times)} of {count} writes are committed: {local.consumer.log_tail()}")
        local.wait_drained(LONGEST_SECONDS)
        alone = _alone(local, commits)
        commits.stop()
        local.broker.stop()
        notes = local.broker.notes()
    parts = [_parts(call, notes, commits.times) for call in calls[WARM_UP_WRITES:]]
    figures = {name: sorted(part[name] for part in parts) for name in parts[0]} | {"database_alone": sorted(alone)}
    result = {"writes": len(parts), "rate": options.rate}
    for name, values in figures.items():
        result |= {f"{name}_p{percent}_ms": round(_percentile(values, percent), 2) for percent in (50, 99)}
    result["times_database_alone"] = round(result["call_to_commit_p50_ms"] / result["database_alone_p50_ms"], 1)
    show(result, options.json)


class Commits:
    """When each write's commit was heard of, by table and revision, in seconds since 1970."""

    def __init__(self, url):
        self.times = {}
        self._connection = psycopg.connect(plain(url), autocommit=True)
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self):
        while not self._stopping.is_set():
            for notice in self._connection.notifies(timeout=0.5, stop_after=1):
                self.times.setdefault(notice.payload, time.time())

    def stop(self):
        self._stopping.set()
        self._thread.join()
        self._connection.close()


def _publish(local, rate, count):
    """One after the other at their time; of each what it is, when it was called, and its answer: a future, and when that came."""
    calls = []
    with local.publisher() as publisher:
        began = time.monotonic()
        for number, write in zip(range(count), writes(), strict=False):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            call = {"name": f"{write.type}s {write.body['revision']}", "called": time.time()}
            call["id"] = publisher.publish(write)
            call["id"].add_done_callback(lambda _, call=call: call.update(answered=time.time()))
            calls.append(call)
    return calls


def _parts(call, notes, commits):
    """Milliseconds of each."""
    called, message_id, committed = call["called"], call["id"].result(), commits[call["name"]]
    taken, sent, acked = notes[message_id]
    seconds = {
        "answered": call["answered"] - called,
        "taken": taken - called,
        "sent": sent - taken,
        "committed": committed - sent,
        "acked": acked - committed,
        "call_to_commit": committed - called,
        "call_to_ack": acked - called,
    }
    return {name: value * 1_000 for name, value in seconds.items()}


def _alone(local, commits):
    """Milliseconds of single upserts, each heard of before the next."""
    milliseconds = []
    with local.connection() as connection:
        for number in range(1, 1 + ALONE_WRITES):
            began = time.time()
            connection.execute(UPSERT, {"key": f"alone-{number}", "revision": -number})
            if not wait_until(lambda number=number: f"customers {-number}" in commits.times, LONGEST_SECONDS):
                raise SystemExit("the database didn't report a commit")
            milliseconds.append((commits.times[f"customers {-number}"] - began) * 1_000)
    return milliseconds


def _percentile(ordered, percent):
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


if __name__ == "__main__":
    main()

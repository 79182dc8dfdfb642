"""What moving slots costs the writes, on the local fleet: a fourth shard is added to three that hold a million rows.

    python -m bench.rebalance [--json] [--rows N] [--rate N] [--replicas N] [--parallel N]
    python -m bench.rebalance --slot-rows 1000000 --inbox-rows 3000000 [--rate 500]

With `--slot-rows` there are eight slots, of which two move. Each of these has that many rows and `--inbox-rows` inbox rows, the
others a thousand. Of inbox rows beside the rows' own, the count and the sum of the identities are read back.

A steady load of writes, 2 % of them published twice, goes on from before the beginning until after the end. Every time is
reported by a server: a message is published when the broker says, and its write is there when PostgreSQL says its transaction
committed. *During* is from the call of `rebalance run` until it returns, with all slots handed over. *Before* is as long as the
load ran with nothing else going on. What comes between (the plan, new subscriptions, consumers replaced one by one) is reported
as `roll_…`.

- `anomalies`: rows and writes that are lost, doubled, on a shard that isn't theirs, of another value than was written last, or
  whose row's history shows a write that took effect twice or after a later one; dead letters and strays. Must be 0. Every row
  and every inbox row of every database is read, those too that were never written to.
- `pause_…_s`: of each moved slot that was written to, the longest time from publish to commit of a write that was published
  during; over those slots the median, the 99th percentile (nearest rank) and the largest. The usual latency is in it.
- `closed_…_s`: of each moved slot, written to or not, from the moment its barrier was published to the commit that let the new
  shard write. No write of the slot that is published in between can commit before its end.
- `unmoved_pause_…_s`: as `pause_…_s`, of the slots that stay in their database; `usual_pause_…_s`: of all slots, before.
- `unmoved_rate_ratio`: commits a second of the slots that stay, during against before.
- `slots_moved`, `slots_moved_minimum`: slots another database holds afterwards, and what no plan stays under.
- `rows_copied`: rows and inbox rows, as the run counts them: those that it copied, and the few that last rounds brought over.
- `copy_rows_per_s`: these by the time in which at least one slot was being copied. For each copy it begins before what the slot
  may have left at the destination is deleted, and ends when the sums of what was read and what is stored have been compared; the
  commit isn't in it. The run measures this time; where copies overlap, it counts once. The load goes on meanwhile.
- `run_s`, `roll_s`, `total_s`: during; applying the transitional file, until what drained consumers handed back has come again;
  from the plan to the settled file applied.
- `cpu_elsewhere`: the part of the processors that others took, during. Where it isn't near 0, the times above are theirs too.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import tempfile
import time
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from bench.meter import Processors
from bench.report import parser_of, say, show
from bench.rig import plain
from shardctl.fleet import topology
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local import history, pauses
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import DUPLICATE_RATE, LATEST_DUPLICATE, Publication
from shardctl.local.moving import Moving
from shardctl.local.pauses import Times
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.request import Request
from shardctl.rebalance.run import PARALLEL
from shardctl.shard.schema import published
from shardctl.wire import identity
from shardctl.wire.message import Write

FLEET = """
fleet: bench
project: bench-project
routing: {{slot_bits: {bits}}}
image: consumer:bench
message_types:
  customer:
    table: customers
    key: customer_id
    columns: {{customer_id: text, name: text, credit: bigint, revision: bigint}}
shards:
  - {{name: s0, slots: {0}}}
  - {{name: s1, slots: {1}}}
  - {{name: s2, slots: {2}}}
"""
MANY, FEW = (10, ("0-351", "352-671", "672-1023")), (3, ("0-2", "3-5", "6-7"))
GOALS = {
    "anomalies": "0",
    "pause_p99_s": "<= 1",
    "unmoved_rate_ratio": ">= 0.9",
    "slots_moved": "the minimum",
}
SMALL_SLOT_ROWS = 1_000
PAST = 1  # the key's hash and the fingerprint of inbox rows that no row goes with
_IS_PAST = f"(key_hash = {PAST} AND fingerprint = {PAST})"
WARM_UP_SECONDS, BEFORE_SECONDS, AFTER_SECONDS = 5.0, 10.0, 2.0
LONGEST_SECONDS = 120.0


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--slot-rows", type=int, default=0, help="of each slot that moves, of a few; instead of --rows")
    parser.add_argument(
        "--inbox-rows", type=int, default=0, help="with --slot-rows: inbox rows of each slot that moves"
    )
    parser.add_argument("--rate", type=float, default=1_000, help="writes a second")
    parser.add_argument("--replicas", type=int, default=1, help="consumers of each shard")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="slots in flight at once, at most")
    options = parser.parse_args()
    bits, slots = FEW if options.slot_rows else MANY
    fleet = history.recorded(fleet_from(parse(FLEET.format(*slots, bits=bits), "bench")))
    with tempfile.TemporaryDirectory(prefix="shardctl-bench-") as folder:
        local = LocalFleet(fleet, Path(folder), replicas=options.replicas)
        try:
            result = measure(local, rows_of(fleet, options), options.rate, options.parallel)
        finally:
            local.stop()
    show(result, options.json, GOALS)


def rows_of(fleet, options):
    bits = fleet.routing.slot_bits
    if not options.slot_rows:
        return Rows(bits, dict.fromkeys(range(1 << bits), options.rows), options.rows)
    moved = {slot for move in plan(fleet, Request(add=("s3",), like="s0")).moves for slot in move.slots}
    wanted = {slot: options.slot_rows if slot in moved else SMALL_SLOT_ROWS for slot in range(1 << bits)}
    return Rows(
        bits, wanted, sum(wanted.values()), dict.fromkeys(moved, max(0, options.inbox_rows - options.slot_rows))
    )


def measure(local, rows, rate, parallel):
    slots = range(1 << rows.bits)
    say(f"loading {rows.count:,} rows …")
    local.start_servers()
    local.provision()
    for shard in local.spec.shards:
        history.keep(local.spec, shard, local.database_url(shard.name))
    rows.load(local)
    local.start_consumers()
    say("writing …")
    feed = Feed(local.spec, local.broker.host, Updates(rows), writes_per_second=rate)
    feed.start()
    try:
        time.sleep(WARM_UP_SECONDS)
        quiet = time.time()
        time.sleep(BEFORE_SECONDS)
        moving = Moving.adding(local, "s3")
        opened = time.time()
        moving.open()
        assert rows.past.keys() <= moving.moved
        say(f"{moving.plan.moved} slots are announced; consumers are rolled …")
        rolled = time.time()
        moving.roll()
        say("slots move …")
        began = time.time()
        processors = Processors()
        stats = moving.run(parallel=parallel)
        elsewhere = processors.elsewhere(Processors())
        ended = time.time()
        say("what they left behind is deleted …")
        effect = moving.effect(Times(quiet, opened, began, ended), feed.published_at)
        commits = moving.commits(quiet, feed.published_at)
        roll = pauses.waits(commits, slots, rolled, began)
        usual = pauses.waits(commits, slots, quiet, opened)
        moving.finish()
        finished = time.time()
        time.sleep(AFTER_SECONDS)
    finally:
        feed.stop()
    local.wait_drained(LONGEST_SECONDS)
    say("every row is read back …")
    judge = Judge(local.spec, rows, feed.writes)
    anomalies = judge.judge(local.databases) | not_taken(local)
    if anomalies:
        say(f"ANOMALIES: {anomalies}")
    return {
        "anomalies": sum(anomalies.values()),
        **seconds("pause", effect.moved),
        **seconds("closed", effect.closed),
        **seconds("unmoved_pause", effect.unmoved),
        **seconds("roll_pause", roll),
        **seconds("usual_pause", usual),
        "unmoved_rate_ratio": round(effect.rate_ratio, 3),
        "slots_moved": moving.plan.moved,
        "slots_moved_minimum": moving.plan.minimum,
        "slots_written_to_while_moving": effect.moved.slots,
        "rows_copied": stats["rows_copied"],
        "copy_rows_per_s": round(stats["rows_copied"] / stats["copying_seconds"]),
        "rows": rows.count,
        "past_inbox_rows": sum(rows.past.values()),
        "writes_verified": len(feed.writes),
        "roll_s": round(began - rolled, 1),
        "run_s": round(ended - began, 1),
        "finish_s": round(finished - ended, 1),
        "total_s": round(finished - opened, 1),
        "cpu_elsewhere": round(elsewhere, 2),
    }


def seconds(name, spread):
    return {
        f"{name}_p50_s": round(spread.p50, 3),
        f"{name}_p99_s": round(spread.p99, 3),
        f"{name}_max_s": round(spread.longest, 3),
    }


def not_taken(local):
    """Messages that no shard has."""
    subscriptions = local.subscriptions()
    names = {"dead letters": [topology.dead_letter_subscription(local.spec)]}
    names["strays"] = [stray.id for stray in topology.strays(local.spec)]
    counts = {what: sum(subscriptions[name]["undelivered"] for name in ids) for what, ids in names.items()}
    return {what: count for what, count in counts.items() if count}


class Rows:
    """Customers, each known by its number: what the databases hold of them before anything is written.

    `wanted` has the most of them that each slot may have. `past` inbox rows of a slot are of writes that are long forgotten.
    """

    def __init__(self, bits, wanted, count, past=None):
        self.bits, self.count, self.past = bits, count, past or {}
        self.by_slot = defaultdict(list)
        self.numbers, self.slots = [], {}
        for number in itertools.count():
            if len(self.numbers) == count:
                break
            slot = slot_of(key_of(number), bits)
            if len(self.by_slot[slot]) < wanted[slot]:
                self.by_slot[slot].append(number)
                self.numbers.append(number)
                self.slots[number] = slot
        self.past_sums = {slot: self._sum(slot, count) for slot, count in self.past.items()}

    def past_identities(self, slot, count):
        for number in range(count):
            yield hashlib.blake2b(b"%d/%d" % (slot, number), digest_size=16).digest()

    def _sum(self, slot, count):
        return sum(map(int.from_bytes, self.past_identities(slot, count))) % (1 << 64)

    def load(self, local):
        """Straight into the databases, each row with the inbox row of the message that would have made it."""
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda shard: self._load(shard, local.database_url(shard.name)), local.spec.shards))

    def _load(self, shard, url):
        with psycopg.connect(plain(url), autocommit=True) as connection:
            now = published(time.time_ns() // 1_000)  # not to be purged yet
            with connection.transaction():
                columns = f"customer_id, name, credit, revision, {history.COLUMN}, slot"
                with connection.cursor().copy(f"COPY customers ({columns}) FROM STDIN") as copy:
                    for slot in shard.slots:
                        lines = (f"{key_of(n)}\tname {n}\t{n}\t0\t0\t{slot}\n" for n in self.by_slot[slot])
                        copy.write("".join(lines))
                columns = "slot, identity, key_hash, fingerprint, published"
                with connection.cursor().copy(f"COPY shardctl_inbox ({columns}) FROM STDIN") as copy:
                    for slot in shard.slots:
                        keys = (key_of(n) for n in self.by_slot[slot])
                        lines = (f"{slot}\t{identity_of(key, 0, slot).hex()}\t0\t0\t{now}\n" for key in keys)
                        copy.write("".join(lines))
                        for its_identity in self.past_identities(slot, self.past.get(slot, 0)):
                            copy.write(f"{slot}\t{its_identity.hex()}\t{PAST}\t{PAST}\t{now}\n")
            connection.execute("VACUUM ANALYZE customers")
            connection.execute("VACUUM ANALYZE shardctl_inbox")


class Updates:
    """A stream without end of upserts and updates of those rows. `latest` knows each row's revision."""

    def __init__(self, rows, seed=5):
        self._numbers, self.latest = [numbers for _, numbers in sorted(rows.by_slot.items())], Counter()
        self._draw = random.Random(seed)

    def __iter__(self):
        again = deque()
        for at in range(1 << 60):
            write = self._write()
            yield Publication(write)
            if self._draw.random() < DUPLICATE_RATE:
                again.append((at + self._draw.randrange(LATEST_DUPLICATE), write))
            while again and again[0][0] <= at:
                yield Publication(again.popleft()[1], duplicate=True)

    def _write(self):
        number = self._draw.choice(self._draw.choice(self._numbers))
        self.latest[number] += 1
        revision = self.latest[number]
        body = {"customer_id": key_of(number), "name": f"name {number}, {revision}", "revision": revision}
        operation = "update" if self._draw.random() < 0.5 else "upsert"
        return Write("customer", body, operation=operation, idempotency_key=f"{key_of(number)}#{revision}")


def key_of(number):
    return f"c{number:07d}"


def slot_of(key, bits):
    """By the published rule, not by the code that is measured."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) >> (256 - bits)


def identity_of(key, revision, slot):
    return identity.in_slot(identity.of_key("", "customer", f"{key}#{revision}"), slot)


class Judge:
    """Reads every row back, in plain SQL. `writes` are those that were published, each once, in order."""

    def __init__(self, fleet, rows, writes):
        self._owner = {slot: shard.name for shard in fleet.shards for slot in shard.slots}
        self._rows = rows
        self._revisions = defaultdict(lambda: ["0"])
        for write in writes:
            self._revisions[write.body["customer_id"]].append(str(write.body["revision"]))
        self._published = len(writes)
        bits = fleet.routing.slot_bits
        self._entities = {identity_of(key, 0, slot_of(key, bits)).hex(): key for key in map(key_of, rows.numbers)}
        for write in writes:
            key = write.body["customer_id"]
            self._entities[identity_of(key, write.body["revision"], slot_of(key, bits)).hex()] = key
        self._past = defaultdict(lambda: [0, 0])
        self.found = Counter()

    def judge(self, databases):
        seen = [self._read(shard, url) for shard, url in databases.items()]
        rows, inbox = (Counter(key for lines in seen for key in lines[kind]) for kind in (0, 1))
        self.found["rows twice"] = sum(count > 1 for count in rows.values())
        self.found["rows lost"] = self._rows.count - len(rows)
        self.found["writes twice"] = sum(count > 1 for count in inbox.values())
        for slot, count in self._rows.past.items():
            self.found["past writes"] += [count, self._rows.past_sums[slot]] != [
                self._past[slot][0],
                self._past[slot][1] % (1 << 64),
            ]
        self.found["writes lost"] = self._rows.count + self._published - len(inbox)
        return {what: count for what, count in self.found.items() if count}

    def _read(self, shard, url):
        rows, inbox = [], []
        with psycopg.connect(plain(url)) as connection:
            columns = f"customer_id, name, credit, revision, {history.COLUMN}, slot"
            for line in _lines(connection, f"SELECT {columns} FROM customers"):
                self._judge_row(shard, line)
                rows.append(line[0])
            digits = "SELECT slot, replace(identity::text, '-', '')"
            for slot, its_identity in _lines(connection, f"{digits} FROM shardctl_inbox WHERE {_IS_PAST}"):
                self._past[int(slot)][0] += 1
                self._past[int(slot)][1] += int(its_identity, 16)
                self.found["writes misplaced"] += self._owner[int(slot)] != shard
            query = f"{digits}, coalesce(outcome, 0) FROM shardctl_inbox WHERE NOT {_IS_PAST}"
            for slot, its_identity, outcome in _lines(connection, query):
                entity = self._entities.get(its_identity)
                self.found["writes nobody made"] += entity is None
                self.found["writes misplaced"] += entity is not None and self._misplaced(shard, entity, slot)
                self.found["writes dead-lettered or parked"] += outcome != "0"
                inbox.append(its_identity)
        return rows, inbox

    def _judge_row(self, shard, line):
        key, name, credit, revision, past, slot = line
        number, revisions = int(key[1:]), self._revisions.get(key, ["0"])
        self.found["rows misplaced"] += self._misplaced(shard, key, slot)
        wanted = f"name {number}" if revisions[-1] == "0" else f"name {number}, {revisions[-1]}"
        self.found["wrong values"] += (name, credit, revision) != (wanted, str(number), revisions[-1])
        if past != "0" or len(revisions) > 1:
            doubled, disordered = history.faults(past, revisions)
            self.found["took effect twice"] += len(doubled)
            self.found["out of order"] += len(disordered)

    def _misplaced(self, shard, key, slot):
        right = self._rows.slots[int(key[1:])]
        return str(right) != slot or self._owner[right] != shard


def _lines(connection, query):
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
        rest = b""
        for block in copy:
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                yield line.decode().split("\t")


if __name__ == "__main__":
    main()

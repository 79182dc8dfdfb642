"""Two shards on SQLite, whose inboxes say what a test has them say."""

from sqlalchemy import create_engine, insert

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.outcomes.effect import Sought
from shardctl.provision import provision_database
from shardctl.shard.schema import InboxOutcome, inbox, parked, parked_keys
from shardctl.wire import identity

FILE = """
fleet: orders
project: my-project
image: example.com/consumer:1.0
routing: {slot_bits: 4}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, amount: bigint}}
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15}
"""
BODY = b'{"order_id": "o-1", "amount": 1}'


class Inboxes:
    def __init__(self, folder):
        self.fleet = fleet_from(parse(FILE))
        self.engines = {shard.name: create_engine(f"sqlite:///{folder}/{shard.name}.db") for shard in self.fleet.shards}

    @classmethod
    def of(cls, fleet, engines):
        made = cls.__new__(cls)
        made.fleet, made.engines = fleet, engines
        return made

    def provision(self):
        for shard in self.fleet.shards:
            provision_database(self.fleet, shard, str(self.engines[shard.name].url))

    def sought(self, key="o-1", idempotency_key="i-1", caller="shop", body=BODY, kind="order"):
        slot = self.fleet.routing.rule.slot_of(key)
        fingerprint = None if body is None else identity.fingerprint("upsert", key, body)
        return Sought.of_key(caller, kind, key, idempotency_key, slot, fingerprint)

    def home(self, write):
        return next(shard.name for shard in self.fleet.shards if write.slot in shard.slots)

    def record(self, connection, write, outcome=InboxOutcome.APPLIED, fingerprint=None, reason=None):
        connection.execute(
            insert(inbox).values(
                identity=write.identity,
                slot=write.slot,
                key_hash=identity.key_hash(write.message_type, write.key),
                fingerprint=write.fingerprint if fingerprint is None else fingerprint,
                published=1,
                outcome=None if outcome is InboxOutcome.APPLIED else outcome,
                reason=reason,
            )
        )

    def settle(self, write, outcome=InboxOutcome.APPLIED, shard=None, **more):
        with self.engines[shard or self.home(write)].begin() as connection:
            self.record(connection, write, outcome, **more)

    def park(self, *writes, reason="constraint"):
        """Writes of one key, the first of which failed."""
        head = writes[0]
        key = {"slot": head.slot, "message_type": head.message_type, "partition_key": head.key}
        with self.engines[self.home(head)].begin() as connection:
            connection.execute(insert(parked_keys).values(**key, reason=reason, detail="secret", released=False))
            for write in writes:
                self.record(connection, write, InboxOutcome.PARKED)
                connection.execute(
                    insert(parked).values(
                        **key,
                        operation="upsert",
                        idempotency_key="",
                        identity=write.identity,
                        message_id="1",
                        publish_time_us=1,
                        attributes="{}",
                        body=b"",
                    )
                )

    def lane(self, shard, slot, state):
        with self.engines[shard].begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM shardctl_lanes WHERE slot = {slot}")
            connection.exec_driver_sql(
                f"INSERT INTO shardctl_lanes (slot, generation, state) VALUES ({slot}, 1, '{state}')"
            )

    def close(self):
        for engine in self.engines.values():
            engine.dispose()

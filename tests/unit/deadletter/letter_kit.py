"""Letters of a small fleet, as consumers, Pub/Sub and strangers leave them."""

from shardctl.deadletter.letter import Message, read
from shardctl.fleet.keyspace import slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

TEXT = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
message_types:
  thing: {table: things, key: id, columns: {id: text, note: text}}
  timed: {table: timed, key: id, columns: {id: text, at: timestamp}, time_bucket: {field: at, unit: day}}
shards:
  - {name: s0, slots: 0-31, types: [thing, timed]}
  - {name: s1, slots: 32-63, types: [thing, timed]}
"""
FLEET = fleet_from(parse(TEXT, "test"))
MOVING = fleet_from(
    parse(
        TEXT.replace(
            "s0, slots: 0-31,", "s0, slots: 0-15, generation: 2, previous: [{generation: 1, slots: 0-31}],"
        ).replace("s1, slots: 32-63,", "s1, slots: 16-63, generation: 2, previous: [{generation: 1, slots: 32-63}],"),
        "test",
    )
)
KEY = next(key for key in map("k{}".format, range(99)) if 16 <= slot_of(key, 6) < 32)
SLOT = slot_of(KEY, 6)
US = 1_700_000_000_000_000
OURS = {
    "shardctl-reason": "constraint", "shardctl-error": "no", "shardctl-shard": "s0", "shardctl-slot": str(SLOT),
    "shardctl-message-id": "17", "shardctl-publish-time-us": str(US - 5), "shardctl-subscription": "shop-s0-g1",
}  # fmt: skip
WRITE = {"slot": f"{SLOT:06b}", "partition_key": KEY, "message_type": "thing"}
PUBSUBS = {
    "CloudPubSubDeadLetterSourceSubscription": "shop-s0-g1", "CloudPubSubDeadLetterSourceDeliveryCount": "5",
    "CloudPubSubDeadLetterSourceSubscriptionProject": "p",
    "CloudPubSubDeadLetterSourceTopicPublishTime": "2023-11-14T22:13:19.123Z",
}  # fmt: skip


def letter(attributes, data=b"{}", *, stray=False, fleet=FLEET, ident="99", subscription="shop-dead"):
    return read(fleet, subscription, Message(ident, US, "", attributes, data), stray=stray)

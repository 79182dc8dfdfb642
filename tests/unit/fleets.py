"""Small fleets for tests."""

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from

HEAD = """\
fleet: orders
project: my-project
image: example.com/consumer:1.0
"""
TYPE = "  {name}:\n    table: {name}_rows\n    key: id\n    columns: {{id: text, at: timestamp, amount: bigint}}\n"


def text(shards, *, slot_bits=10, topic_bits=0, types=("a", "b"), more=""):
    """`shards.yaml` from lists of lines of YAML, one list a shard, or from texts of slots."""
    lines = [HEAD, f"routing: {{slot_bits: {slot_bits}, topic_bits: {topic_bits}}}\n", more, "message_types:\n"]
    lines += [TYPE.format(name=name) for name in types]
    lines.append("shards:\n")
    for number, shard in enumerate(shards):
        fields = [f'slots: "{shard}"'] if isinstance(shard, str) else shard
        lines.append(f"  - name: s{number}\n" + "".join(f"    {field}\n" for field in fields))
    return "".join(lines)


def fleet(shards, **settings):
    return fleet_from(yamlfile.parse(text(shards, **settings)))

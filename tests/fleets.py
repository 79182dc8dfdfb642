"""Small fleets for tests."""

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import SHARD_OVERRIDES

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


def throughout(fleet, **settings):
    """The fleet with other settings, past a file's checks, and its shards with them where shards have such settings."""
    own = {name: value for name, value in settings.items() if name in SHARD_OVERRIDES}
    shards = tuple(shard.model_copy(update=own) for shard in fleet.shards)
    return fleet.model_copy(update={"shards": shards, **settings})
